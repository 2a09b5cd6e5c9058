"""Losses of a whole batch: contrast, quantile, assignment. The same over pieces as over the uncut batch."""

import pytest
import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.method import Card, Method, Transfer
from limbeck.objectives import Loss, Objective, Term


def contrast(student, teacher, heat=0.5):
    """InfoNCE: a student's embedding must find its teacher's among those of the batch."""
    a, b = nn.functional.normalize(student, dim=-1), nn.functional.normalize(teacher, dim=-1)
    return -(a @ b.T / heat).log_softmax(-1).diagonal()


def upper_half(student, teacher):
    """One number: the mean distance of those that are further away than the median."""
    apart = (student - teacher).square().sum(-1)
    return apart[apart >= apart.median()].mean()


def assigned(student, teacher):
    """Sinkhorn: the teacher's scores, balanced over the batch, are what the student predicts."""
    with torch.no_grad():
        plan = teacher.softmax(-1)
        for _ in range(3):
            plan = plan / plan.sum(0, keepdim=True)
            plan = plan / plan.sum(1, keepdim=True)
    return -(plan * student.log_softmax(-1)).sum(-1)


class Whole(Transfer):
    """A term of scope batch beside the task."""

    card = Card("whole")
    term: str = "contrast"

    def objective(self):
        function = {"contrast": contrast, "upper_half": upper_half, "assigned": assigned}[self.term]
        return Objective(Term(function, scope="batch", weight=0.7))


def build(term, micro_batch="auto"):
    student, teacher = Student(Net(6), view="x"), Teacher(Net(4), view="a")
    return Whole(term=term), situation(student, teacher, **PLAIN, micro_batch=micro_batch)


@pytest.mark.parametrize("term", ["contrast", "upper_half", "assigned"])
def test_the_cut_does_not_show(term, tmp_path):
    whole, cut = survives(lambda: build(term), tmp_path / "1"), survives(lambda: build(term, 3), tmp_path / "3")
    single = survives(lambda: build(term, 1), tmp_path / "8")

    method, where = fresh(lambda: build(term))
    settle(method, where)
    net, theirs = where.student.model, where.teacher.model
    function = {"contrast": contrast, "upper_half": upper_half, "assigned": assigned}[term]
    for batch in steps(where):
        logits = net(batch["x"])
        loss = 0.7 * function(logits, theirs(batch["a"]).detach()).mean()
        loss = loss + nn.functional.cross_entropy(logits, batch["label"])
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
    for course in (whole, cut, single):
        for ours, expected in zip(course.situation.student.model.parameters(), net.parameters()):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


class Heated(Method):
    """A learnt temperature inside the contrast, random views, dropout: replayed in the second pass."""

    card = Card("heated")

    def setup(self):
        self.heat = nn.Parameter(torch.tensor(0.5))

    def loss(self, batch):
        ours, theirs = self.student(batch)["logits"], self.teacher(batch)["logits"]
        return self.task.loss({"logits": ours}, batch) + Loss.batch(
            "contrast", lambda s, t: contrast(s, t, self.heat), s=ours, t=theirs
        )


def test_a_learnt_temperature_and_dropout_survive_in_pieces(tmp_path):
    def made(micro_batch, dropout):
        student = Student(Net(6, dropout=dropout), view="x")
        return Heated(), situation(student, Teacher(Net(4), view="a"), **PLAIN, micro_batch=micro_batch)

    survives(lambda: made(3, 0.5), tmp_path / "dropout")
    whole, cut = survives(lambda: made("auto", 0.0), tmp_path / "1"), survives(lambda: made(3, 0.0), tmp_path / "3")
    assert whole.methods[0].heat != 0.5
    torch.testing.assert_close(cut.methods[0].heat, whole.methods[0].heat, rtol=1e-4, atol=1e-6)
