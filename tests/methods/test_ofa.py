"""OFA: the loss is the sum over exits and logits, in limit cases that of KD; students of three families; a restart."""

import pytest
import torch
from safetensors.torch import load_file
from small_images import CNN, ViT, data, in_halves, settled, situation
from torch import nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.bridges.exits import MapExit, TokenExit, VectorExit
from limbeck.errors import RecipeError
from limbeck.losses import kl, soft_cross_entropy
from limbeck.losses.ofa import ofa
from limbeck.methods import find
from limbeck.methods.kd import KD
from limbeck.methods.ofa import OFA
from limbeck.teachers.mixture import Mixture


class MLP(nn.Module):
    def __init__(self, width: int = 6, classes: int = 3):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.c(self.b(self.a(x.flatten(1)).relu()).relu())


def test_the_loss_is_the_papers_sum():
    exponents = [1.0, 1.2, 1.5, 2.0]
    where = situation(CNN, ViT)
    method = OFA(exponent=exponents, temperature=2.0, logits_weight=0.5, exits_weight=3.0, weight=2.0, task_weight=0.7)
    batch = settled(method, where)
    method.eval()
    where.student.model.eval()
    student, theirs = where.student(batch), where.teacher(batch)["logits"]
    told = {"target": batch["label"], "temperature": 2.0}
    exits = sum(
        ofa(head(student[name]), theirs, exponent=e, **told).mean()
        for head, name, e in zip(method.heads, method.places, exponents)
    )
    last = ofa(student["logits"], theirs, exponent=2.0, **told).mean()
    task = nn.functional.cross_entropy(student["logits"], batch["label"])
    torch.testing.assert_close(method.loss(batch).total(), 0.7 * task + 2 * (3 * exits + 0.5 * last))


def test_one_exponent_for_all_equals_a_list_of_it():
    where = situation()
    one, many = OFA(exponent=1.3), OFA(exponent=[1.3, 1.3, 1.3, 1.3])
    batch = settled(one, where)
    settled(many, where)
    many.heads.load_state_dict(one.heads.state_dict())
    for method in (one, many):
        method.eval()
    torch.testing.assert_close(one.loss(batch).total(), many.loss(batch).total())


def test_with_exponent_one_the_student_has_the_gradient_of_kd():
    where = situation()
    method, other = OFA(exits_weight=0.0, task_weight=0.0), KD(temperature=1, task_weight=0.0)
    batch = settled(method, where)
    settled(other, where)
    weight = where.student.model.fc.weight
    (found,) = torch.autograd.grad(method.loss(batch).total(), weight)
    (expected,) = torch.autograd.grad(other.loss(batch).total(), weight)
    torch.testing.assert_close(found, expected)


def test_exits_alone_leave_the_students_classifier_alone():
    """A stage's exit teaches that stage and what comes before it, nothing behind."""
    where, method = situation(), OFA(logits_weight=0.0, task_weight=0.0)
    batch = settled(method, where)
    parts = {}
    student, theirs = where.student(batch), where.teacher(batch)["logits"]
    for head, name in zip(method.heads, method.places):
        parts[name] = soft_cross_entropy(head(student[name]), theirs.softmax(-1)).sum()
    modules = dict(where.student.model.named_children())
    for i, name in enumerate(method.places):
        where.student.model.zero_grad()
        parts[name].backward(retain_graph=True)
        reached = [n for n, m in modules.items() if any(p.grad is not None and p.grad.any() for p in m.parameters())]
        assert reached == ["first", "second", "third"][: i + 1]
    assert kl(theirs, theirs).sum() == 0


@pytest.mark.parametrize(("student", "kind"), [(CNN, MapExit), (ViT, TokenExit), (MLP, VectorExit)])
@pytest.mark.parametrize("teacher", [CNN, ViT, MLP])
def test_students_and_teachers_of_three_families(student, teacher, kind):
    where, method = situation(student, teacher), OFA(exponent=1.5)
    batch = settled(method, where)
    assert method.heads
    assert all(isinstance(head, kind) for head in method.heads)
    assert set(method.loss(batch).parts) == {"exits", "logits", "task"}
    method.loss(batch).total().backward()
    assert all(p.grad is not None for p in method.heads.parameters())
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_exits_are_counted_from_the_last_stage_and_as_wide_as_the_larger_embedding():
    where, method = situation(), OFA()  # three stages: 2, 3 and 4; embeddings of 16 and 24
    settled(method, where)
    assert method.places == ["first", "second", "third"]
    assert [len(head.steps) for head in method.heads] == [2, 1, 1]
    assert [head.head.in_features for head in method.heads] == [24, 24, 24]
    assert "first, second, third" in method.notices[0]
    named = OFA(exits=["second"], width=9)
    settled(named, where)
    assert [(len(head.steps), head.head.in_features) for head in named.heads] == [(1, 9)]
    both = situation()
    both.teacher = Mixture({"a": Teacher(CNN(6), view="x"), "b": Teacher(CNN(8), view="x")})
    mixed = OFA()
    settled(mixed, both)
    assert [head.head.in_features for head in mixed.heads] == [16, 16, 16]


def test_classes_in_another_order_are_brought_into_the_students():
    where, method = situation(), OFA(exponent=1.5, exits_weight=0.0, task_weight=0.0)
    where.student.labels, where.teacher.labels = ["a", "b", "c"], ["c", "a", "b"]
    batch = settled(method, where)
    theirs = where.teacher(batch)["logits"][:, [1, 2, 0]]
    expected = ofa(where.student(batch)["logits"], theirs, target=batch["label"], exponent=1.5).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match="has 2 numbers; with exits at first, second, third it has 4"):
        settled(OFA(exponent=[1.0, 1.5]), situation())
    with pytest.raises(RecipeError, match="exponent"):
        OFA(exponent=0)
    where = situation()
    where.task = None
    with pytest.raises(RecipeError, match="sharpens the true class"):
        settled(OFA(), where)
    with pytest.raises(RecipeError, match="student logits have 3 classes, teacher logits 5"):
        settled(OFA(), situation(CNN, lambda: MLP(classes=5)))
    with pytest.raises(RecipeError, match="no such place. Did you mean 'first'"):
        settled(OFA(exits=["firts"]), situation())


def test_it_adds_to_another_transfer():
    where, total = situation(), KD() + OFA()
    batch = settled(total, where)
    assert set(total.loss(batch).parts) == {"kl", "exits", "logits", "task"}


def test_a_run_in_two_halves_is_the_run(tmp_path):
    whole, halves = in_halves(lambda: (OFA(exponent=1.5), situation(epochs=2)), tmp_path)
    assert whole.keys() == halves.keys()
    assert any(name.startswith("method.heads.") for name in whole)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_it_runs_from_a_recipe_and_leaves_the_exits_behind(tmp_path):
    run = limbeck.distill(
        task="classification",
        data=data(),
        teacher=Teacher(ViT(), view="x"),
        student=Student(CNN(4), view="x"),
        method={"use": "ofa", "exponent": [1, 1, 1.5, 1.5]},
        train={"epochs": 1, "batch_size": 8},
        control="none",
        out=tmp_path / "run",
    )
    assert find("ofa") is OFA
    assert run.result["status"] == "finished"
    assert load_file(run.folder / "student/model.safetensors").keys() == CNN(4).state_dict().keys()
