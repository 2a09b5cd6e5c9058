"""Methods that look at the label among the logits: what counts, and labels among the classes of both."""

import pytest
import torch
from logit_cases import NAMES, Pointwise, data, settled, situation

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.losses.nontarget import nontarget_kl
from limbeck.methods.dkd import DKD
from limbeck.tasks import Task


def test_a_mask_per_sample_counts_its_labelled_pixels():
    where = situation("maps")
    where.data["train"].tensors["sample"] = torch.arange(20) % 3 > 0
    batch = settled(method := DKD(mask="sample", alpha=0.0, beta=1.0, weight=1.0, task_weight=0), where)
    counts = batch["sample"][:, None, None] & (batch["label"] >= 0)
    s, t = (actor(batch)["logits"].movedim(1, -1)[counts] for actor in (where.student, where.teacher))
    expected = nontarget_kl(s, t, batch["label"][counts], temperature=4.0).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


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
