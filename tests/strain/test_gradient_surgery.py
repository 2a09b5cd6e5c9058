"""Losses in conflict: the gradients of the parts are combined, or edited, before the step."""

import pytest
import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torchjd.aggregation import MGDA, PCGrad

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


def harmonise(rows):
    """An edit by hand: both rows at the length of the shorter one, then their sum."""
    length = rows.norm(dim=1, keepdim=True)
    return (rows * length.min() / length).sum(0)


class InConflict(Method):
    """A teacher that says the opposite of the labels."""

    card = Card("in-conflict")
    how: str = "mgda"

    def learn(self, batch, progress):
        combine = {"mgda": MGDA(), "pcgrad": PCGrad(), "sum": None, "edit": harmonise}[self.how]
        outcome = yield Update("student", self.loss, batch, combine=combine)
        assert outcome.grad_norm > 0

    def loss(self, batch):
        signals = self.student(batch)
        apart = Loss.mean("kl", kl(signals["logits"], -8 * torch.nn.functional.one_hot(batch["label"], 3).float()))
        return self.task.loss(signals, batch) + 2.0 * apart


def build(how, **more):
    return InConflict(how=how), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN, **more)


def by_hand(how, steps_made=6):
    method, where = fresh(lambda: build(how))
    settle(method, where)
    net = where.student.model
    learning, rows = list(net.parameters()), None
    for batch in list(steps(where))[:steps_made]:
        logits = net(batch["x"])
        parts = cross_entropy(logits, batch["label"]).mean(), 2 * kl(logits, -8 * torch.eye(3)[batch["label"]]).mean()
        grads = [torch.autograd.grad(part, learning, retain_graph=True) for part in parts]
        rows = torch.stack([torch.cat([g.flatten() for g in found]) for found in grads])
        joined = {"mgda": MGDA(), "pcgrad": PCGrad(), "sum": lambda r: r.sum(0), "edit": harmonise}[how](rows)
        offset = 0
        for p in learning:
            p.data -= 0.1 * joined[offset : offset + p.numel()].view_as(p)
            offset += p.numel()
    return net, rows


@pytest.mark.parametrize("how", ["mgda", "pcgrad", "edit", "sum"])
@pytest.mark.parametrize("pieces", [1, 3])
def test_combined_gradients_are_those_of_a_loop_by_hand(how, pieces, tmp_path):
    course = survives(lambda: build(how, micro_batch=8 if pieces == 1 else 3), tmp_path)
    net, rows = by_hand(how)
    assert torch.nn.functional.cosine_similarity(*rows, dim=0) < 0, "the parts are not in conflict"
    for ours, theirs in zip(course.situation.student.model.parameters(), net.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_surgery_differs_from_the_sum():
    assert not torch.allclose(by_hand("mgda")[0].fc1.weight, by_hand("sum")[0].fc1.weight, atol=1e-4)
