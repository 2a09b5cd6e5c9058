"""Distillation token by token: the divergence that is named, over the tokens of the answers, by whatever road."""

import pytest
import torch

from limbeck import RecipeError, Student, Task, Teacher, losses
from limbeck.method import Progress
from limbeck.methods.token_kd import ForwardKL, ReverseKL, TokenKD, divergence_term
from limbeck.signals import Projection

CLASSES = 11
OPTIONS = {
    "forward-kl": ("kl", {}),
    "reverse-kl": ("reverse-kl", {}),
    "jeffreys": ("jeffreys", {}),
    "js": ("js", {"beta": 0.3}),
    "continuous-js": ("continuous-js", {"beta": 0.3}),
    "trl-js": ("trl-js", {"beta": 0.3}),
    "skew-kl": ("skew-kl", {"alpha": 0.2}),
    "skew-reverse-kl": ("skew-reverse-kl", {"alpha": 0.2}),
    "tvd": ("tvd", {}),
    "adaptive-kl": ("adaptive-kl", {"alpha": 0.2}),
    "top-k-kl": ("top-k-kl", {"k": 4}),
}


class Speaker(torch.nn.Module):
    """A language model of one layer, whose logits are given as factors or multiplied out."""

    def __init__(self, width: int, *, whole: bool, classes: int = CLASSES):
        super().__init__()
        self.read = torch.nn.Embedding(CLASSES, width)
        self.head = torch.nn.Linear(width, classes)
        self.whole = whole

    def forward(self, input_ids):
        found = Projection(torch.tanh(self.read(input_ids)), self.head.weight, self.head.bias)
        return {"logits": found.materialise() if self.whole else found}


def batch(rows: int = 4, length: int = 6) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(0, CLASSES, (rows, length), generator=draw)
    answer = torch.rand(rows, length, generator=draw) < 0.6
    answer[:, -1] = False
    target = ids.roll(-1, 1).where(answer, -100)
    sizes = answer.sum(1)
    return {"input_ids": ids, "target": target, "answer": answer, "answer_bytes": sizes, "id": torch.arange(rows)}


def pair(*, whole: bool, classes: int = CLASSES) -> tuple[Student, Teacher]:
    torch.manual_seed(0)
    student, teacher = Speaker(3, whole=whole), Speaker(5, whole=whole, classes=classes)
    return Student(student.double(), view="input_ids"), Teacher(teacher.double(), view="input_ids")


def bound(method: TokenKD, student: Student, teacher: Teacher) -> TokenKD:
    for actor in (student, teacher):
        actor.probe(batch())
    method.bind(student, teacher, Task("text"))
    method.setup()
    return method


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_values_and_gradients_are_those_of_the_plain_loss_on_the_answers(name, temperature):
    function, options = OPTIONS[name]
    found = []
    for whole in (True, False):
        student, teacher = pair(whole=whole)
        method = bound(TokenKD(divergence=name, temperature=temperature, task_weight=0.5, **options), student, teacher)
        total = method.loss(batch()).total()
        total.backward()
        found.append([total.detach(), *(p.grad for p in student.model.parameters())])
    student, teacher = pair(whole=True)
    own = batch()
    counted = own["answer"]
    z, w = student(own)["logits"][counted], teacher(own)["logits"][counted]
    if name == "trl-js":
        options = {"beta": 0.3}
    expected = losses.find(function)(z, w, temperature=temperature, **options).mean()
    expected = expected + 0.5 * torch.nn.functional.cross_entropy(z, own["target"][counted])
    expected.backward()
    found.append([expected.detach(), *(p.grad for p in student.model.parameters())])
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_no_gradient_reaches_the_teacher_and_garbage_outside_the_answers_changes_nothing():
    student, teacher = pair(whole=False)
    method = bound(ForwardKL(), student, teacher)
    own = batch()
    before = method.loss(own)
    before.total().backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    silent = own | {"answer": torch.zeros_like(own["answer"]), "target": torch.full_like(own["target"], -100)}
    nothing = method.loss(silent)
    assert nothing.total() == 0
    assert nothing.parts["forward-kl"].count == 0
    assert nothing.parts["forward-kl"].mask is silent["answer"]


def test_the_padding_of_a_head_takes_no_part():
    student, teacher = pair(whole=False, classes=16)
    student.tokenizer_size = None
    with pytest.raises(RecipeError, match="11 classes, the teacher's 16"):
        bound(ForwardKL(), student, teacher)

    class Tokens:
        size = CLASSES

        def same_as(self, other):
            return True

    for actor in (student, teacher):
        actor._tokenizer = Tokens()
    whole, other = pair(whole=True, classes=16)
    whole._tokenizer = other._tokenizer = Tokens()
    values = [bound(ForwardKL(), *actors).loss(batch()).total() for actors in ((student, teacher), (whole, other))]
    torch.testing.assert_close(*values)
    own = batch()
    z = whole(own)["logits"][own["answer"]]
    w = other(own)["logits"][own["answer"]][:, :CLASSES]
    torch.testing.assert_close(values[0], losses.kl(z, w).mean())


def test_other_tokenizers_are_refused_with_the_methods_that_cross_them():
    class Tokens:
        def __init__(self, size):
            self.size = size

        def same_as(self, other):
            return False

        def difference(self, other):
            return f"teacher and student split text differently ({self.size} and {other.size} tokens, 31% shared)"

    student, teacher = pair(whole=False)
    student._tokenizer, teacher._tokenizer = Tokens(12), Tokens(11)
    told = r"split text differently \(11 and 12 tokens.* Methods that cross tokenizers: "
    with pytest.raises(RecipeError, match=told):
        bound(ReverseKL(), student, teacher)


def test_names_and_defaults():
    assert divergence_term("forward-kl", temperature=1, beta=0.5, alpha=None, k=64).function is losses.kl
    assert divergence_term("adaptive-kl", temperature=1, beta=0.5, alpha=None, k=64).options["alpha"] == 0.5
    assert divergence_term("skew-kl", temperature=1, beta=0.5, alpha=None, k=64).options["alpha"] == 0.1
    assert ForwardKL().divergence == "forward-kl"
    with pytest.raises(RecipeError, match="divergence"):
        ReverseKL(divergence="js")


def test_it_adds_up_with_other_transfers():
    student, teacher = pair(whole=False)
    both = bound(ForwardKL(weight=0.5) + ReverseKL(), student, teacher)
    alone = [bound(method, *pair(whole=False)).loss(batch()).total() for method in (ForwardKL(), ReverseKL())]
    object.__setattr__(both, "progress", Progress())
    torch.testing.assert_close(both.loss(batch()).total(), 0.5 * alone[0] + alone[1])
