"""ULD: its formula on pairs of positions, whichever tokens they belong to."""

import pytest
import torch
from two_vocabularies import ANSWERS, OURS, THEIRS, batch, bound, pair

from limbeck import RecipeError, Task
from limbeck.methods.uld import ULD


def gaps(z: torch.Tensor, w: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """sum |sorted p - sorted q| of two rows of logits, the shorter filled up."""
    q, p = ((x / temperature).softmax(-1).sort(descending=True).values for x in (z, w))
    q, p = (torch.cat([x, x.new_zeros(max(len(p), len(q)) - len(x))]) for x in (q, p))
    return (p - q).abs().sum()


def by_hand(student, teacher, own, pairs) -> torch.Tensor:
    z, w = (actor(own)["logits"] for actor in (student, teacher))
    z, w = (x if isinstance(x, torch.Tensor) else x.materialise() for x in (z, w))
    samples = [torch.stack([gaps(z[b, i], w[b, j], 2.0) for i, j in row]).mean() for b, row in enumerate(pairs) if row]
    return torch.stack(samples).mean()


def positions(own) -> list[list[tuple[int, int]]]:
    ours, theirs = (own[f"{p}answer"] for p in ("", "teacher_"))
    return [list(zip(*(x.nonzero().squeeze(1).tolist() for x in row))) for row in zip(ours, theirs)]


def beginnings(own) -> list[list[tuple[int, int]]]:
    found = []
    for a, b in zip(own["group"].tolist(), own["teacher_group"].tolist()):
        found.append([(a.index(n), b.index(n)) for n in range(max(a) + 1) if n in b])
    return found


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("pairs", ["position", "chunk"])
def test_value_and_gradients_are_those_of_the_formula(whole, pairs):
    own = batch(ANSWERS)
    student, teacher = pair(whole=whole)
    method = bound(ULD(temperature=2.0, weight=0.7, task_weight=0.3, pairs=pairs), student, teacher, own)
    total = method.loss(method.draw(own)).total()
    z = student(own)["logits"]
    z = z if whole else z.materialise()
    ce = torch.nn.functional.cross_entropy(z[own["answer"]], own["target"][own["answer"]])
    chosen = (positions if pairs == "position" else beginnings)(own)
    expected = 0.7 * by_hand(student, teacher, own, chosen) + 0.3 * ce
    torch.testing.assert_close(total, expected, check_dtype=False)
    parameters = list(student.model.parameters())
    for a, b in zip(torch.autograd.grad(total, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(a, b)


def test_positions_go_together_although_the_text_differs_and_chunks_only_where_it_does_not():
    own = batch([("a", "ab c")])  # a|b| |c|end and ab| c|end
    student, teacher = pair()
    at = bound(ULD(), student, teacher, own).draw(own)["uld_partner"][0].tolist()
    assert at == [0, 1, 2, -1, -1, -1]
    at = bound(ULD(pairs="chunk"), student, teacher, own).draw(own)["uld_partner"][0].tolist()
    assert at == [0, -1, 1, -1, 2, -1]


def test_no_order_of_the_teachers_tokens_changes_anything():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ULD(), student, teacher, own)
    before = method.loss(method.draw(own)).total()
    order = torch.randperm(len(THEIRS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        teacher.model.head.weight.copy_(teacher.model.head.weight[order])
        teacher.model.head.bias.copy_(teacher.model.head.bias[order])
    torch.testing.assert_close(method.loss(method.draw(own)).total(), before)


def test_a_student_that_says_the_same_in_other_tokens_has_nothing_to_learn():
    own = batch(ANSWERS, theirs=None)
    student, teacher = pair(theirs=OURS, width=3)
    student.model.load_state_dict(teacher.model.state_dict())
    order = torch.tensor([3, 1, 4, 0, 2])
    with torch.no_grad():
        student.model.head.weight.copy_(student.model.head.weight[order])
        student.model.head.bias.copy_(student.model.head.bias[order])
    method = bound(ULD(task_weight=0, weight=1), student, teacher, own)
    assert method.loss(method.draw(own)).total().abs() < 1e-12


def test_no_gradient_reaches_the_teacher_and_what_does_not_count_changes_nothing():
    own = batch(ANSWERS)
    student, teacher = pair(whole=True)
    method = bound(ULD(), student, teacher, own)
    drawn = method.draw(own)
    total = method.loss(drawn).total()
    total.backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    wider = {k: torch.nn.functional.pad(v, (0, 3)) if v.dim() > 1 else v for k, v in own.items()}
    wider |= {k: torch.where(wider["attention_mask"] > 0, wider[k], -100) for k in ("target",)}
    torch.testing.assert_close(method.loss(method.draw(wider)).total(), total)


def test_nothing_that_counts_is_a_loss_of_zero_that_counts_nothing():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ULD(), student, teacher, own)
    own |= {k: torch.zeros_like(own[k]) for k in ("answer", "teacher_answer")} | {
        "target": torch.full_like(own["target"], -100)
    }
    loss = method.loss(method.draw(own))
    assert loss.total() == 0
    assert loss.parts["uld"].count == 0
    loss.total().backward()


def test_pieces_of_a_batch_add_up_to_the_whole():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ULD(task_weight=0, weight=1), student, teacher, own)
    drawn = method.draw(own)
    parts = [method.loss({k: v[at] for k, v in drawn.items()}).parts["uld"] for at in (slice(0, 1), slice(1, 4))]
    whole = method.loss(drawn)
    torch.testing.assert_close(sum(p.sum for p in parts) / sum(p.count for p in parts), whole.total())
    assert whole.parts["uld"].mask is drawn["uld_weight"]


def test_it_says_what_it_needs():
    own = batch(ANSWERS)
    student, teacher = pair()
    method = bound(ULD(), student, teacher, own)
    method.bind(student, teacher, Task("classification"))
    with pytest.raises(RecipeError, match="uld compares language models, and the task is classification"):
        method.setup()
    method.bind(student, None, Task("text"))
    with pytest.raises(RecipeError, match="there is no teacher"):
        method.setup()
    method = bound(ULD(pairs="chunk"), student, teacher, own)
    without = {k: v for k, v in own.items() if "group" not in k}
    with pytest.raises(RecipeError, match="without the columns group and teacher_group"):
        method.draw(without)
    with pytest.raises(RecipeError, match="pairs"):
        ULD(pairs="chunks")
