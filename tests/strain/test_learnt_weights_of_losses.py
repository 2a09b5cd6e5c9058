"""Weights of losses that learn: by an unrolled second-order step, and as plain parameters beside the student."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn
from torch.func import functional_call

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


class Unrolled(Method):
    """The share of teacher and label per class learns so that the student *after* its next step does well."""

    card = Card("unrolled")
    inner: float = 0.1

    def setup(self):
        self.share = nn.Parameter(torch.zeros(3))

    def trainees(self):
        return {"student": [self.student.model], "share": [self.share]}

    def learn(self, batch, progress):
        theirs = {"theirs": self.teacher(batch)["logits"]}
        yield Update("share", self.after_a_step, batch | theirs, whole=True)
        yield Update("student", self.loss, batch | theirs)

    def values(self, logits, batch):
        share = self.share.sigmoid()[batch["label"]]
        return share * kl(logits, batch["theirs"]) + (1 - share) * cross_entropy(logits, batch["label"])

    def loss(self, batch):
        return Loss.mean("shared", self.values(self.student(batch)["logits"], batch))

    def after_a_step(self, batch):
        half = len(batch["id"]) // 2
        now, later = ({k: v[part] for k, v in batch.items()} for part in (slice(half), slice(half, None)))
        weights = {n: p.detach().requires_grad_() for n, p in self.student.model.named_parameters()}
        args, _ = self.student.shown(now)
        loss = self.values(functional_call(self.student.model, weights, args), now).mean()
        found = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        stepped = {n: p - self.inner * g for (n, p), g in zip(weights.items(), found)}
        logits = functional_call(self.student.model, stepped, self.student.shown(later)[0])
        return Loss.mean("after", cross_entropy(logits, later["label"]))


def test_an_unrolled_step_gives_the_second_order_gradient(tmp_path):
    def build():
        return Unrolled(), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    assert course.methods[0].share.abs().min() > 0

    method, where = fresh(build)
    settle(method, where)
    batch = next(steps(where))
    batch["theirs"] = where.teacher(batch)["logits"]
    loss = method.after_a_step(batch).total()
    (exact,) = torch.autograd.grad(loss, method.share)
    for i in range(3):  # against central differences: d(loss after a step)/d(share)
        moved = []
        for sign in (1, -1):
            with torch.no_grad():
                method.share[i] += sign * 0.05
            moved.append(float(method.after_a_step(batch).total().detach()))
            with torch.no_grad():
                method.share[i] -= sign * 0.05
        torch.testing.assert_close(float(exact[i]), (moved[0] - moved[1]) / 0.1, rtol=0.05, atol=2e-5)


class Uncertainty(Method):
    """exp(-s) loss + s for each of two losses: homoscedastic weighting, s learnt beside the student."""

    card = Card("uncertainty")

    def setup(self):
        self.s = nn.Parameter(torch.zeros(2))

    def loss(self, batch):
        signals = self.student(batch)
        loss = (-self.s[0]).exp() * self.task.loss(signals, batch)
        loss = loss + (-self.s[1]).exp() * Loss.mean("kl", kl(signals["logits"], self.teacher(batch)["logits"]))
        return loss + Loss.mean("s", self.s.sum().expand(len(batch["id"])))


def test_weights_beside_the_student_learn_in_any_cut(tmp_path):
    def build(micro_batch="auto"):
        where = situation(
            Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN, micro_batch=micro_batch, log_every=1
        )
        return Uncertainty(), where

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    torch.testing.assert_close(course.methods[0].s, cut.methods[0].s, rtol=1e-4, atol=1e-6)

    method, where = fresh(build)
    settle(method, where)
    batch = next(steps(where))
    (found,) = torch.autograd.grad(method.loss(batch).total(), method.s)
    logits = where.student.model(batch["x"])
    task, apart = cross_entropy(logits, batch["label"]).mean(), kl(logits, where.teacher.model(batch["a"])).mean()
    torch.testing.assert_close(found, torch.stack([1 - task, 1 - apart]))  # at s = 0: d/ds (exp(-s) l + s) = 1 - l
