"""Two batches a step, two views a step: a labelled batch beside an unlabelled one, weak beside strong."""

import torch
from harness import PLAIN, Net, fresh, rows, situation, steps, survives, toy
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss
from limbeck.randomness import fold, uniform
from limbeck.views import Noise, View


class TwoBatches(Method):
    """A supervised update on the step's batch, then one of transfer on twice as many rows of another split."""

    card = Card("two-batches")

    def learn(self, batch, progress):
        yield Update("student", self.supervised, batch)
        pool = self.data["unlabelled"]
        drawn = torch.cat([uniform(fold(batch["view_seed"], salt)) for salt in (1, 2)])
        yield Update("student", self.transfer, pool.__getitems__((drawn * len(pool)).long()))

    def supervised(self, batch):
        return self.task.loss(self.student(batch), batch)

    def transfer(self, batch):
        return Loss.mean("kl", kl(self.student(batch)["logits"], self.teacher(batch)["logits"]))


def with_a_pool():
    data = toy()
    data.splits["unlabelled"] = rows(40, 1000, 4)
    return data


def test_a_second_batch_is_drawn_from_another_split(tmp_path):
    def build(micro_batch="auto"):
        student, teacher = Student(Net(6), view="x"), Teacher(Net(4), view="a")
        return TwoBatches(), situation(student, teacher, data=with_a_pool(), **PLAIN, micro_batch=micro_batch)

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    _, where = fresh(build)
    net, pool = where.student.model, where.data["unlabelled"]
    for batch in steps(where):
        seeds = batch["view_seed"]
        drawn = torch.cat([uniform(fold(seeds, salt)) for salt in (1, 2)])
        more = pool.__getitems__((drawn * 40).long())
        for loss in (
            lambda batch=batch: nn.functional.cross_entropy(net(batch["x"]), batch["label"]),
            lambda more=more: kl(net(more["x"]), where.teacher.model(more["a"]).detach()).mean(),
        ):
            for p, grad in zip(net.parameters(), torch.autograd.grad(loss(), list(net.parameters()))):
                p.data -= 0.1 * grad
    for found in (course, cut):
        torch.testing.assert_close(found.situation.student.model.fc1.weight, net.fc1.weight, rtol=1e-4, atol=1e-6)


class OneLossOfTwo(Method):
    """Labelled and unlabelled rows in one update, four of these beside each of those: columns of one more dimension."""

    card = Card("one-loss-of-two")

    def learn(self, batch, progress):
        pool = self.data["unlabelled"]
        chosen = (uniform(fold(batch["view_seed"], 1), 4) * len(pool)).long()
        more = {f"{k}_more": v[chosen] for k, v in pool.tensors.items() if k in ("x", "a")}
        yield Update("student", self.loss, batch | more)

    def loss(self, batch):
        more = {k: batch[f"{k}_more"].flatten(0, 1) for k in ("x", "a")}
        apart = kl(self.student(more)["logits"], self.teacher(more)["logits"]).unflatten(0, (-1, 4))
        return self.task.loss(self.student(batch), batch) + Loss.mean("kl", apart)


class WeakAndStrong(Method):
    """A strongly disturbed view must be told what a lightly disturbed one was sure of."""

    card = Card("weak-and-strong", teacher_mode="none", needs=())

    def setup(self):
        self.strong = Student(self.student.model, view=View("x", transforms=[Noise(std=1.0)]))

    def loss(self, batch):
        with torch.no_grad():
            weak = self.student(batch)["logits"].softmax(-1)
        sure, label = weak.max(-1)
        strong = cross_entropy(self.strong(batch)["logits"], label)
        return self.task.loss(self.student(batch), batch) + Loss.mean("sure", strong, sure > 0.4)


def test_one_update_holds_two_batches_or_two_views_in_any_cut(tmp_path):
    def more(micro_batch="auto"):
        student, teacher = Student(Net(6), view="x"), Teacher(Net(4), view="a")
        return OneLossOfTwo(), situation(student, teacher, data=with_a_pool(), **PLAIN, micro_batch=micro_batch)

    def views(micro_batch="auto"):
        student = Student(Net(6), view=View("x", transforms=[Noise(std=0.1)]))
        return WeakAndStrong(), situation(student, **PLAIN, micro_batch=micro_batch)

    for name, build in (("more", more), ("views", views)):
        whole = survives(build, tmp_path / name)
        cut = survives(lambda build=build: build(3), tmp_path / f"{name}-cut")
        for p, expected in zip(cut.situation.student.model.parameters(), whole.situation.student.model.parameters()):
            torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)
