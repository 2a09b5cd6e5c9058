"""Memories with one entry per sample, keyed by its stable id; the same random view shown twice."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import cross_entropy, kl, soft_cross_entropy
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss
from limbeck.randomness import fold, uniform
from limbeck.views import Noise, View


class OwnPast(Method):
    """Labels softened by what the student itself said about the sample an epoch ago (progressive self-distillation)."""

    card = Card("own-past", teacher_mode="none", needs=())

    def setup(self):
        rows = 1 + max(int(batch["id"].max()) for batch in self.data.splits["train"])
        self.register_buffer("said", torch.zeros(rows, 3))
        self.register_buffer("times", torch.zeros(rows, dtype=torch.int64))

    def learn(self, batch, progress):
        share = 0.8 * progress.epoch / progress.epochs
        hard = torch.nn.functional.one_hot(batch["label"], 3).float()
        soft = {"soft": (1 - share) * hard + share * self.said[batch["id"]]}
        outcome = yield Update("student", self.loss, batch | soft)
        self.said[outcome.record["id"]] = outcome.record["said"]
        self.times[outcome.record["id"]] += 1

    def loss(self, batch):
        logits = self.student(batch)["logits"]
        loss = Loss.mean("soft", soft_cross_entropy(logits, batch["soft"]))
        loss.record |= {"id": batch["id"], "said": logits.softmax(-1)}
        return loss


def test_a_memory_keyed_by_id_is_read_an_epoch_later_in_any_cut(tmp_path):
    def build(micro_batch="auto"):
        return OwnPast(), situation(Student(Net(6), view="x"), **PLAIN, micro_batch=micro_batch)

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    _, where = fresh(build)
    net, said = where.student.model, torch.zeros(22, 3)
    for i, batch in enumerate(steps(where)):
        soft = torch.eye(3)[batch["label"]]
        if i >= 3:
            soft = 0.6 * soft + 0.4 * said[batch["id"]]
        logits = net(batch["x"])
        loss = -(soft * logits.log_softmax(-1)).sum(-1).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
        said[batch["id"]] = logits.detach().softmax(-1)
    for found in (course, cut):
        torch.testing.assert_close(found.methods[0].said, said)
        torch.testing.assert_close(found.situation.student.model.fc1.weight, net.fc1.weight)
        assert found.methods[0].times.tolist() == [2] * 22


class SameView(Method):
    """Function matching: teacher and student are shown the same mixture of two samples and the same noise."""

    card = Card("same-view")

    def learn(self, batch, progress):
        share = uniform(fold(batch["view_seed"], 7)).unsqueeze(1)
        partner = uniform(fold(batch["view_seed"], 8)).argsort()  # who is mixed with whom: drawn on the whole batch
        mixed = {k: share * batch[k] + (1 - share) * batch[k][partner] for k in ("x", "a")}
        outcome = yield Update("student", self.loss, batch | mixed)
        assert torch.equal(outcome.record["seen"], outcome.record["again"])

    def loss(self, batch):
        loss = Loss.mean("kl", kl(self.student(batch)["logits"], self.teacher(batch)["logits"]))
        loss.record |= {"seen": self.student.shown(batch)[0][0], "again": self.teacher.shown(batch)[0][0]}
        return loss


def test_both_see_the_same_random_view_however_the_batch_is_cut(tmp_path):
    def build(micro_batch="auto"):
        view = View("x", transforms=[Noise(std=0.5)])
        student, teacher = Student(Net(6), view=view), Teacher(Net(6), view=view)
        return SameView(), situation(student, teacher, **PLAIN, micro_batch=micro_batch)

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    for ours, theirs in zip(course.situation.student.model.parameters(), cut.situation.student.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Remembered(Method):
    """A teacher asked once per sample and view: the second epoch reads what the first wrote."""

    card = Card("remembered")

    def setup(self):
        self.register_buffer("stored", torch.full((len(self.data.splits["train"]), 3), torch.nan))

    def learn(self, batch, progress):
        ids = batch["id"]
        new = self.stored[ids, 0].isnan()
        if progress.epoch == 0:
            self.stored[ids[new]] = self.teacher({k: v[new] for k, v in batch.items()})["logits"]
        assert not self.stored[ids].isnan().any()
        yield Update("student", self.loss, batch | {"stored": self.stored[ids]})

    def loss(self, batch):
        logits = self.student(batch)["logits"]
        return Loss.mean("kl", kl(logits, batch["stored"])) + Loss.mean("task", cross_entropy(logits, batch["label"]))


def test_a_teacher_is_asked_once_and_remembered_by_id(tmp_path):
    calls = []

    class Counting(Net):
        def forward(self, *columns):
            calls.append(len(columns[0]))
            return super().forward(*columns)

    def build():
        return Remembered(), situation(Student(Net(6), view="x"), Teacher(Counting(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    live = course.situation.teacher(course.situation.data.splits["train"].tensors)["logits"]
    torch.testing.assert_close(course.methods[0].stored, live)
    method, where = fresh(build)
    settle(method, where)
    calls.clear()
    from limbeck.engine.course import Course

    Course(method, where).run()
    assert sum(calls) == 22 + 4  # every row once, and the probe
