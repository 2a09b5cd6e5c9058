"""KD and supervised: their losses written out, limit cases, gradients, and what the engine reads of the teacher."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import Course, settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.errors import RecipeError
from limbeck.method import Method
from limbeck.methods.kd import KD
from limbeck.methods.mst_distill import MSTDistill
from limbeck.methods.supervised import Supervised
from limbeck.tasks import Task
from limbeck.teachers.mixture import Mixture

NAMES = ["a", "b", "c", "d"]


def situation(teacher: nn.Module | None = None, student: nn.Module | None = None, **train) -> Situation:
    torch.manual_seed(0)
    split = TensorSplit({"x": torch.randn(48, 5), "label": torch.randint(0, 4, (48,))})
    data = Data({"train": split, "validation": split}, {"x": "", "label": ""}, {"label": NAMES}, source="toy")
    teacher = teacher or nn.Linear(5, 4)
    actors = Student(student or nn.Linear(5, 4), view="x"), Teacher(teacher, view="x")
    return Situation(
        *actors, Task("classification", labels=NAMES), data, TrainSettings(**({"epochs": 1, "batch_size": 16} | train))
    )


def settled(method: Method, where: Situation) -> dict:
    settle(method, where)
    return where.data["train"].__getitems__(list(range(20)))


@given(temperature=st.floats(0.3, 20), weight=st.floats(0, 3), task_weight=st.floats(0.01, 3))
def test_the_loss_is_the_papers(temperature, weight, task_weight):
    where = situation()
    method = KD(temperature=temperature, weight=weight, task_weight=task_weight)
    batch = settled(method, where)
    ours, theirs = where.student.model(batch["x"]), where.teacher.model(batch["x"])
    p, log_q = (theirs / temperature).softmax(-1), (ours / temperature).log_softmax(-1)
    soft = temperature**2 * (p * (p.log() - log_q)).sum(-1).mean()
    expected = task_weight * F.cross_entropy(ours, batch["label"]) + weight * soft
    torch.testing.assert_close(method.loss(batch).total(), expected, rtol=2e-4, atol=1e-5)


def test_at_high_temperature_the_gradient_is_that_of_centred_logits():
    """T^2 KL tends to |centred difference of logits|^2 / (2 C): Hinton et al., section 2.1."""
    where = situation(nn.Linear(5, 4).double(), nn.Linear(5, 4).double())
    method = KD(temperature=1e4, task_weight=0)
    for split in where.data.splits.values():
        split.tensors["x"] = split.tensors["x"].double()
    batch = settled(method, where)
    weight = where.student.model.weight
    (found,) = torch.autograd.grad(method.loss(batch).total(), weight)
    gap = where.student.model(batch["x"]) - where.teacher.model(batch["x"]).detach()
    gap = gap - gap.mean(-1, keepdim=True)
    (expected,) = torch.autograd.grad((gap**2).sum(-1).mean() / (2 * 4), weight)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


def test_no_gradient_reaches_the_teacher():
    where = situation()
    method = KD()
    batch = settled(method, where)
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_a_student_that_equals_its_teacher_has_only_the_tasks_gradient():
    where = situation()
    where.student.model.load_state_dict(where.teacher.model.state_dict())
    method = KD(task_weight=0)
    batch = settled(method, where)
    (found,) = torch.autograd.grad(method.loss(batch).total(), where.student.model.weight)
    assert float(found.abs().max()) < 1e-6


class Constant(nn.Module):
    """Always says the same."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)
        nn.init.zeros_(self.out.weight)
        self.out.bias.data = torch.tensor([2.0, 0.0, -1.0, 0.5])

    def forward(self, x):
        return self.out(self.fc2(self.fc1(x)))


@pytest.mark.parametrize(
    "method",
    [
        KD(temperature=2, task_weight=0),
        MSTDistill(task_weight=0, weight=1.0, balance_weight=0, cotraining={"epochs": 0}, mask_training={"epochs": 1}),
    ],
    ids=["kd", "mst-distill"],
)
def test_a_student_collapses_onto_a_constant_teacher(method):
    where = situation(Constant(), epochs=60, lr=0.05, select="last", weight_decay=0.0)
    if isinstance(method, MSTDistill):
        where.teacher = Mixture({"only": where.teacher})
    Course(method, where).run()
    with torch.no_grad():
        said = where.student.model(where.data["train"].tensors["x"]).softmax(-1)
    torch.testing.assert_close(said, Constant().out.bias.softmax(-1).expand_as(said), rtol=0.05, atol=0.03)


def test_supervised_is_cross_entropy_and_asks_no_teacher():
    where = situation()
    calls = []
    where.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    method = Supervised()
    batch = settled(method, where)
    calls.clear()
    torch.testing.assert_close(
        method.loss(batch).total(), F.cross_entropy(where.student.model(batch["x"]), batch["label"])
    )
    assert not calls


def test_supervised_can_train_the_teachers_and_leaves_the_student_alone():
    where = situation(epochs=2)
    before = [p.clone() for p in where.student.model.parameters()]
    teacher = [p.clone() for p in where.teacher.model.parameters()]
    Course(Supervised(who="teacher"), where).run()
    assert all(torch.equal(a, b) for a, b in zip(before, where.student.model.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(teacher, where.teacher.model.parameters(), strict=True))


def test_options_are_checked_at_construction():
    with pytest.raises(RecipeError, match="temperature"):
        KD(temperature="hot")
    with pytest.raises(RecipeError, match="temperature"):
        KD(temperature=0)
    with pytest.raises(RecipeError, match=r"unknown key 'temprature' of kd. Did you mean 'temperature'"):
        KD(temprature=2)
    assert KD(temperature=4).temperature == 4.0
