"""Teacher and student inside one module: an adapter that is switched off, shared layers, a branch."""

import torch
from harness import PLAIN, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import kl
from limbeck.method import Card, Method
from limbeck.objectives import Loss


class Adapted(nn.Module):
    """A frozen base with a low-rank adapter."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(6, 3).requires_grad_(False), nn.Linear(6, 2), nn.Linear(2, 3)
        self.drop = nn.Dropout(0.5)
        self.on = True

    def forward(self, x):
        return self.base(x) + (self.up(self.drop(self.down(x))) if self.on else self.drop(torch.zeros(len(x), 3)))


class WithoutAdapter(nn.Module):
    """The same network with its adapter off; holds no weight of its own."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        self.net.on = False
        try:
            assert not self.net.drop.training, "the teacher runs in eval mode, whoever owns its layers"
            return self.net(x)
        finally:
            self.net.on = True


class Keep(Method):
    """Learn the task, and stay close to what one was without the adapter."""

    card = Card("keep")

    def loss(self, batch):
        signals = self.student(batch)
        apart = Loss.mean("kl", kl(signals["logits"], self.teacher(batch)["logits"]))
        return self.task.loss(signals, batch) + apart


def test_an_adapter_is_switched_off_for_the_teacher(tmp_path):
    def build(dropout=0.5):
        net = Adapted()
        net.drop.p = dropout
        return Keep(), situation(Student(net, view="x"), Teacher(WithoutAdapter(net), view="x"), **PLAIN)

    survives(build, tmp_path)
    course = survives(lambda: build(0.0), tmp_path / "plain")
    method, where = fresh(lambda: build(0.0))
    settle(method, where)
    net = where.student.model
    learning = [*net.down.parameters(), *net.up.parameters()]
    for batch in steps(where):
        base, logits = net.base(batch["x"]), net(batch["x"])
        loss = nn.functional.cross_entropy(logits, batch["label"]) + kl(logits, base).mean()
        for p, grad in zip(learning, torch.autograd.grad(loss, learning)):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.up.weight, net.up.weight)
    assert torch.equal(course.situation.student.model.base.weight, net.base.weight)
    assert not any(p.requires_grad for p in course.situation.student.model.base.parameters())
    assert all(p.requires_grad for p in course.situation.student.model.up.parameters())


class Branches(nn.Module):
    """A trunk with a shallow and a deep head: the deep one teaches the shallow one."""

    def __init__(self):
        super().__init__()
        self.trunk, self.shallow = nn.Linear(6, 5), nn.Linear(5, 3)
        self.deep = nn.Sequential(nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, x):
        h = self.trunk(x)
        return {"logits": self.shallow(h), "deep": self.deep(h)}


class OwnTeacher(Method):
    """Both heads learn the task; the shallow one also from the deep one, whose gradient stops there."""

    card = Card("own-teacher", teacher_mode="none", needs=())

    def loss(self, batch):
        signals = self.student(batch)
        deep = Loss.mean("deep", nn.functional.cross_entropy(signals["deep"], batch["label"], reduction="none"))
        apart = Loss.mean("kl", kl(signals["logits"], signals["deep"].detach(), temperature=2.0))
        return self.task.loss(signals, batch) + deep + apart


def test_an_own_deeper_branch_teaches(tmp_path):
    def build():
        return OwnTeacher(), situation(Student(Branches(), view="x"), **PLAIN)

    course = survives(build, tmp_path)
    _, where = fresh(build)
    net = where.student.model
    for batch in steps(where):
        out = net(batch["x"])
        loss = sum(nn.functional.cross_entropy(out[n], batch["label"]) for n in ("logits", "deep"))
        loss = loss + kl(out["logits"], out["deep"].detach(), temperature=2.0).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
    for p, expected in zip(course.situation.student.model.parameters(), net.parameters()):
        torch.testing.assert_close(p, expected)
