"""Several teachers, chosen per sample: by a column, by confidence, by a router that learns, by what they know."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives, toy
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method
from limbeck.methods.kd import KD
from limbeck.objectives import Loss
from limbeck.teachers.mixture import Mixture


def members():
    return {"ears": Teacher(Net(4), view="a"), "eyes": Teacher(Net(6, hidden=9), view="x")}


def test_a_column_says_whom_to_believe(tmp_path):
    def build():
        data = toy(expert=torch.arange(22) % 2)
        for split in ("validation", "test"):
            data.splits[split].tensors["expert"] = torch.zeros(12, dtype=torch.int64)
        where = situation(Student(Net(6), view="x"), Mixture(members(), by="expert"), data=data, **PLAIN)
        return KD(temperature=1.0, task_weight=0.0), where

    course = survives(build, tmp_path)
    _, where = fresh(build)
    net, both = where.student.model, [m.model for m in where.teacher.members.values()]
    for batch in steps(where):
        ears, eyes = both[0](batch["a"]).detach(), both[1](batch["x"]).detach()
        theirs = torch.where((batch["expert"] == 0).unsqueeze(1), ears, eyes)
        loss = kl(net(batch["x"]), theirs).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.fc1.weight, net.fc1.weight)


class Router(Method):
    """A router reads the student's hint and weighs the teachers per sample; it learns by what the mixture is worth."""

    card = Card("router")

    def prepare(self):
        self.student.tap("hint", "fc2")

    def setup(self):
        self.gate = nn.Linear(*self.student.shapes["hint"], len(self.teacher.members))

    def loss(self, batch):
        signals = self.student(batch)
        theirs = torch.stack([member(batch)["logits"] for member in self.teacher.members.values()], 1)
        weights = self.gate(signals["hint"].detach()).softmax(-1)
        mixed = (weights.unsqueeze(-1) * theirs).sum(1)
        loss = Loss.mean("router", cross_entropy(mixed, batch["label"]))
        return loss + Loss.mean("kl", kl(signals["logits"], mixed.detach()))


def test_a_router_learns_whom_to_believe(tmp_path):
    def build(micro_batch="auto"):
        return Router(), situation(Student(Net(6), view="x"), Mixture(members()), **PLAIN, micro_batch=micro_batch)

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    method, where = fresh(build)
    settle(method, where)
    net, gate = where.student.model, method.gate
    ears, eyes = (m.model for m in where.teacher.members.values())
    learning = [*net.parameters(), *gate.parameters()]
    for batch in steps(where):
        hint = net.fc2(torch.relu(net.fc1(batch["x"])))
        w = gate(hint.detach()).softmax(-1)
        mixed = w[:, :1] * ears(batch["a"]).detach() + w[:, 1:] * eyes(batch["x"]).detach()
        loss = nn.functional.cross_entropy(mixed, batch["label"])
        loss = loss + kl(net.out(torch.relu(hint)), mixed.detach()).mean()
        for p, grad in zip(learning, torch.autograd.grad(loss, learning)):
            p.data -= 0.1 * grad
    for found in (course, cut):
        torch.testing.assert_close(found.methods[0].gate.weight, gate.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.situation.student.model.out.weight, net.out.weight, rtol=1e-4, atol=1e-6)
