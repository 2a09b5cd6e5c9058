"""What the methods on logits share: what counts, and labels among the classes of both."""

import pytest
import torch
from logit_cases import NAMES, Pointwise, data, settled, situation

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.methods.dkd import DKD
from limbeck.methods.logits import LogitTransfer
from limbeck.objectives import Objective, Term
from limbeck.tasks import Task


class Plain(LogitTransfer):
    def objective(self):
        return Objective(Term(kl, mask=self.mask))


@pytest.mark.parametrize("kind", ["vectors", "maps", "tokens"])
def test_a_mean_is_over_what_the_mask_counts(kind):
    where = situation(kind)
    batch = settled(method := Plain(mask="kept", task_weight=0), where)
    last = 1 if kind == "maps" else -1
    values = kl(where.student(batch)["logits"], where.teacher(batch)["logits"], dim=last)
    torch.testing.assert_close(method.loss(batch).total(), values[batch["kept"]].mean())


def test_a_mask_per_sample_counts_all_its_pixels():
    where = situation("maps")
    where.data["train"].tensors["sample"] = torch.arange(20) % 3 > 0
    batch = settled(method := Plain(mask="sample", task_weight=0), where)
    values = kl(where.student(batch)["logits"], where.teacher(batch)["logits"], dim=1)
    torch.testing.assert_close(method.loss(batch).total(), values[batch["sample"]].mean())


def test_a_mask_that_is_a_column_of_the_batch_stays_that_column():
    """The engine counts such a mask before the loss is called, at no cost."""
    batch = settled(method := Plain(mask="kept", task_weight=0), situation("tokens"))
    assert method.loss(batch).parts["kl"].mask is batch["kept"]


def test_labels_are_found_among_the_classes_that_both_know():
    """The student's classes b and d are the teacher's second and first; a label of another class does not count."""
    student = Student(Pointwise(), view="x", labels=NAMES)
    teacher = Teacher(Pointwise(classes=3), view="x", labels=["date", "beech", "elm"])
    where = situation(student=student, teacher=teacher)
    batch = settled(method := DKD(temperature=2.0, beta=1.0, weight=1.0, task_weight=0), where)
    s, t = where.student(batch)["logits"][:, [1, 3]], where.teacher(batch)["logits"][:, [1, 0]]
    counts = (batch["label"] == 1) | (batch["label"] == 3)
    assert 0 < counts.sum() < len(counts)
    # of two classes the halves are the whole, and nothing is left to compare among the others
    torch.testing.assert_close(method.loss(batch).total(), kl(s, t, temperature=2.0)[counts].mean())
    where = situation(student=student, teacher=Teacher(Pointwise(), view="x", labels=NAMES[::-1]))
    batch = settled(method := DKD(weight=1.0, task_weight=0, alpha=1.0, beta=0.0), where)
    t = where.teacher(batch)["logits"].flip(1)
    p, q = ((x / 4).softmax(1).gather(1, batch["label"][:, None]) for x in (t, where.student(batch)["logits"]))
    expected = 16 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_what_is_missing_is_said_before_training():
    where = situation()
    with pytest.raises(RecipeError, match=r"Plain.mask is 'keep', no column of the data. Did you mean 'kept'"):
        settle(Plain(mask="keep"), where)
    where.task = Task("regression")
    with pytest.raises(RecipeError, match=r"dkd weighs the right class apart.*the task is regression"):
        settle(DKD(), where)
    where.task = None
    with pytest.raises(RecipeError, match="the task is not given"):
        settle(DKD(), where)
    where = situation()
    where.data = data()
    where.task = Task("classification", target="species")
    with pytest.raises(RecipeError, match=r"needs the label.*no column 'species'"):
        settle(DKD(), where)
