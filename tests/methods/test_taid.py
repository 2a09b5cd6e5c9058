"""TAID: the gradient is q - p_t for every t, the target never falls back, and where it stands survives a restart."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck import RecipeError, Student, Task, Teacher
from limbeck.losses import kl
from limbeck.method import Progress
from limbeck.methods.taid import TAID, between
from limbeck.signals import Projection


class Speaker(nn.Module):
    def __init__(self, width: int, classes: int = 7, *, whole: bool = False, **how: float):
        super().__init__()
        self.read, self.head = nn.Embedding(7, width), nn.Linear(width, classes)
        self.whole, self.how = whole, how

    def forward(self, input_ids):
        found = Projection(self.read(input_ids), self.head.weight, self.head.bias, **self.how)
        return {"logits": found.materialise() if self.whole else found}


def batch() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 1, 0], [2, 2, 2, 2]])
    answer = torch.tensor([[True, True, False, False], [False, True, True, False], [False] * 4])
    target = ids.roll(-1, 1).where(answer, -100)
    return {"input_ids": ids, "answer": answer, "target": target, "id": torch.arange(3), "answer_bytes": answer.sum(1)}


def bound(whole: bool = False, own: dict | None = None, classes: int = 7, **options) -> TAID:
    torch.manual_seed(1)
    student = Student(Speaker(3, whole=whole, **(own or {})).double(), view="input_ids")
    teacher = Teacher(Speaker(5, classes, whole=whole).double(), view="input_ids")
    for actor in (student, teacher):
        actor.probe(batch())
    method = TAID(**options).bind(student, teacher, Task("text"))
    method.setup()
    return method


def logits(method: TAID) -> tuple[torch.Tensor, torch.Tensor]:
    sides = (actor(batch())["logits"] for actor in (method.student, method.teacher))
    return tuple(s.materialise() if isinstance(s, Projection) else s for s in sides)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("own", [{}, {"scale": 0.5}, {"scale": 0.5, "softcap": 2.0}])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_the_loss_is_kl_to_the_softmax_of_mixed_logits(whole, own, t):
    method = bound(whole, own)
    method.t.fill_(t)
    total = method.loss(batch()).total()
    total.backward()
    found = [p.grad.clone() for p in method.student.model.parameters()]
    method.student.model.zero_grad()
    z, w = logits(method)
    counted = batch()["answer"]
    expected = kl(z[counted], ((1 - t) * z + t * w).detach()[counted]).mean()
    expected.backward()
    torch.testing.assert_close(total, expected)
    for ours, theirs in zip(found, method.student.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)


@given(st.floats(0, 1), st.integers(0, 50))
@settings(max_examples=25)
def test_the_gradient_in_the_logits_is_q_minus_the_target(t, seed):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(2, 3, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, 5, generator=draw, dtype=torch.float64)
    kl(z, between(z, w, t)).sum().backward()
    expected = z.detach().softmax(-1) - ((1 - t) * z.detach() + t * w).softmax(-1)
    torch.testing.assert_close(z.grad, expected)


def test_the_target_is_the_student_at_first_and_the_teacher_at_last():
    method = bound()
    method.t.fill_(0)
    assert float(method.loss(batch()).total()) == pytest.approx(0, abs=1e-12)
    z, w = logits(method)
    for t, other in ((0.0, z), (1.0, w)):
        mixed = between(method.student(batch())["logits"], method.teacher(batch())["logits"], t).materialise()
        torch.testing.assert_close(mixed, other)
        assert not mixed.requires_grad


def record(value: float) -> dict[str, torch.Tensor]:
    return {"taid.sum": torch.tensor([value, value]).double(), "taid.count": torch.tensor([1, 1])}


def test_the_target_moves_as_the_papers_equations_say():
    method = bound(start=0.4, rate=0.05, momentum=0.9)
    t, pace, before = 0.4, 0.0, None
    for step, value in enumerate([3.0, 2.5, 2.6, 1.0]):
        object.__setattr__(method, "progress", Progress(step, 10))
        method.keep(record(value))
        if before is not None:
            pace = 0.9 * pace + 0.1 * (before - value) / before
            t = max(0.4 + 0.6 * step / 10, t + 0.05 / (1 + math.exp(-pace)) * (1 - t))
        before = value
        assert float(method.t) == pytest.approx(t)


@given(st.lists(st.floats(1e-3, 50), min_size=2, max_size=20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_it_never_falls_and_is_never_behind_the_line(values, adaptive):
    method = bound(adaptive=adaptive, rate=0.5)
    last = float(method.t)
    for step, value in enumerate(values):
        object.__setattr__(method, "progress", Progress(step, len(values)))
        method.keep(record(value))
        line = 0.4 + 0.6 * step / len(values)
        now = float(method.t)
        assert last <= now <= 1
        assert step == 0 or now >= line - 1e-12
        assert adaptive or step == 0 or now == pytest.approx(line)
        last = now


def test_a_step_in_which_nothing_counts_moves_nothing():
    method = bound()
    silent = batch() | {"answer": torch.zeros(3, 4, dtype=torch.bool)}
    loss = method.loss(silent)
    assert loss.total() == 0
    method.keep(loss.record)
    assert method.before.isnan()


def test_where_it_stands_is_part_of_the_checkpoint():
    method = bound(rate=0.5)
    for step, value in enumerate((3.0, 2.0)):
        object.__setattr__(method, "progress", Progress(step, 9))
        method.keep(record(value))
    other = bound(rate=0.5)
    other.load_state_dict(method.state_dict())
    for one in (method, other):
        object.__setattr__(one, "progress", Progress(2, 9))
        one.keep(record(1.0))
    assert float(method.t) == float(other.t) > 0.4


def test_a_teacher_of_whom_some_classes_are_known_is_refused():
    method = bound()
    method.teacher.sketches = True
    with pytest.raises(RecipeError, match="take the teacher itself|Take the teacher itself"):
        method.setup()
