"""Numbers that are updated by hand after an outcome: prototypes, multipliers, a teacher that is an average."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


class Prototypes(Method):
    """A mean hint per class, moved after each step; hints are pulled to their class's one."""

    card = Card("prototypes", teacher_mode="none", needs=())
    keep: float = 0.8

    def setup(self):
        self.register_buffer("centre", torch.zeros(3, *self.student.shapes["hint"]))

    def learn(self, batch, progress):
        outcome = yield Update("student", self.loss, batch)
        for c in outcome.record["label"].unique():
            mean = outcome.record["hint"][outcome.record["label"] == c].mean(0)
            self.centre[c] = self.keep * self.centre[c] + (1 - self.keep) * mean

    def loss(self, batch):
        signals = self.student(batch)
        away = (signals["hint"] - self.centre[batch["label"]]).square().mean(-1)
        loss = self.task.loss(signals, batch) + 0.5 * Loss.mean("away", away)
        loss.record |= {"hint": signals["hint"], "label": batch["label"]}
        return loss


def test_prototypes_are_moved_by_hand(tmp_path):
    def build(micro_batch="auto"):
        student = Student(Net(6), view="x", taps={"hint": "fc2"})
        return Prototypes(), situation(student, **PLAIN, micro_batch=micro_batch)

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    net, centre = fresh(build)[1].student.model, torch.zeros(3, 5)
    for batch in steps(fresh(build)[1]):
        hint = net.fc2(torch.relu(net.fc1(batch["x"])))
        away = (hint - centre[batch["label"]]).square().mean()
        loss = nn.functional.cross_entropy(net.out(torch.relu(hint)), batch["label"]) + 0.5 * away
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
        for c in batch["label"].unique():
            centre[c] = 0.8 * centre[c] + 0.2 * hint[batch["label"] == c].mean(0).detach()
    for found in (course, cut):
        torch.testing.assert_close(found.methods[0].centre, centre, rtol=1e-4, atol=1e-5)


class Constrained(Method):
    """min task loss subject to KL <= bound: a multiplier that ascends on what is violated."""

    card = Card("constrained")
    bound: float = 0.05

    def setup(self):
        self.register_buffer("multiplier", torch.tensor(1.0))

    def learn(self, batch, progress):
        outcome = yield Update("student", self.loss, batch)
        self.multiplier += 0.5 * (outcome.values["kl"] - self.bound)
        self.multiplier.clamp_(min=0)

    def loss(self, batch):
        signals = self.student(batch)
        apart = Loss.mean("kl", kl(signals["logits"], self.teacher(batch)["logits"]))
        return self.task.loss(signals, batch) + self.multiplier * apart


def test_a_multiplier_ascends_by_what_is_violated(tmp_path):
    seen = []

    class Watched(Constrained):
        def learn(self, batch, progress):
            play = super().learn(batch, progress)
            outcome = yield next(play)
            seen.append(outcome.values["kl"])
            for _ in self.rest(play, outcome):
                raise AssertionError

        def rest(self, play, outcome):
            try:
                yield play.send(outcome)
            except StopIteration:
                return

    def build():
        return Watched(), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    expected = 1.0
    for value in seen[:6]:
        expected = max(0.0, expected + 0.5 * (value - 0.05))
    torch.testing.assert_close(float(course.methods[0].multiplier), expected, rtol=1e-5, atol=1e-5)


class MeanTeacher(Method):
    """The teacher's weights are an average of the student's, written by hand; nothing of it is on any file."""

    card = Card("mean-teacher")

    def learn(self, batch, progress):
        yield Update("student", self.loss, batch)
        for old, new in zip(self.teacher.model.parameters(), self.student.model.parameters()):
            old.lerp_(new, 0.1)

    def loss(self, batch):
        logits = self.student(batch)["logits"]
        loss = Loss.mean("task", cross_entropy(logits, batch["label"]))
        return loss + Loss.mean("kl", kl(logits, self.teacher(batch)["logits"]))


def test_a_teacher_written_by_hand_is_in_the_checkpoint(tmp_path):
    def build():
        return MeanTeacher(), situation(Student(Net(6), view="x"), Teacher(Net(6, dropout=0.5), view="x"), **PLAIN)

    course = survives(build, tmp_path)
    method, where = fresh(build)
    settle(method, where)
    net, mean = where.student.model, where.teacher.model.eval()
    for batch in steps(where):
        logits = net(batch["x"])
        loss = nn.functional.cross_entropy(logits, batch["label"]) + kl(logits, mean(batch["x"]).detach()).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
        for old, new in zip(mean.parameters(), net.parameters()):
            old.data.lerp_(new.data, 0.1)
    for found, expected in zip(course.situation.teacher.model.parameters(), mean.parameters()):
        torch.testing.assert_close(found, expected)
