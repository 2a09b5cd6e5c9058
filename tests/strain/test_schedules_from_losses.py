"""Schedules that follow what is measured: an interpolation driven by the loss, shares of domains that follow the gap."""

import torch
from harness import PLAIN, Net, fresh, rows, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss
from limbeck.randomness import fold, uniform


class Interpolated(Method):
    """The target moves from the student's own logits to the teacher's, faster while the loss falls (as TAID does)."""

    card = Card("interpolated")
    rate: float = 0.5
    keep: float = 0.9

    def setup(self):
        self.register_buffer("share", torch.tensor(0.2))
        self.register_buffer("momentum", torch.tensor(0.0))
        self.register_buffer("before", torch.tensor(torch.nan))

    def learn(self, batch, progress):
        outcome = yield Update("student", self.loss, batch)
        now = torch.tensor(outcome.values["kl"])
        if not self.before.isnan():
            self.momentum.mul_(self.keep).add_((1 - self.keep) * (self.before - now) / (self.before + 1e-8))
            self.share.add_(self.rate * self.momentum.sigmoid() * (1 - self.share))
        self.share.clamp_(min=0.2 + 0.8 * (progress.step + 1) / progress.steps, max=1.0)
        self.before.copy_(now)

    def loss(self, batch):
        ours = self.student(batch)["logits"]
        target = (1 - self.share) * ours.detach() + self.share * self.teacher(batch)["logits"]
        return Loss.mean("kl", kl(ours, target))


def test_the_share_follows_the_loss(tmp_path):
    def build(micro_batch="auto"):
        return Interpolated(), situation(
            Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN, micro_batch=micro_batch
        )

    course = survives(build, tmp_path)
    survives(lambda: build(3), tmp_path / "cut")
    method, where = fresh(build)
    settle(method, where)
    net, share, momentum, before = where.student.model, torch.tensor(0.2), torch.tensor(0.0), None
    for i, batch in enumerate(steps(where)):
        ours = net(batch["x"])
        loss = kl(ours, (1 - share) * ours.detach() + share * where.teacher.model(batch["a"]).detach()).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
        now = loss.detach()
        if before is not None:
            momentum = 0.9 * momentum + 0.1 * (before - now) / (before + 1e-8)
            share = share + 0.5 * momentum.sigmoid() * (1 - share)
        share, before = share.clamp(0.2 + 0.8 * (i + 1) / 6, 1.0), now
    torch.testing.assert_close(course.methods[0].share, share)
    torch.testing.assert_close(course.methods[0].momentum, momentum, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(course.situation.student.model.fc1.weight, net.fc1.weight)


class Domains(Method):
    """Rows are drawn from three domains (here: classes), more from where the student is further from the teacher."""

    card = Card("domains")

    def setup(self):
        self.register_buffer("shares", torch.full((3,), 1 / 3))
        self.register_buffer("drawn", torch.zeros(3, dtype=torch.int64))
        self._table = self.data.splits["train"].tensors  # a table in memory; not state

    def learn(self, batch, progress):
        domain = torch.searchsorted(self.shares.cumsum(0), uniform(fold(batch["view_seed"], 1))).clamp(max=2)
        inside = uniform(fold(batch["view_seed"], 2))
        members = [(self._table["label"] == d).nonzero().squeeze(1) for d in range(3)]
        chosen = torch.stack([members[d][int(u * len(members[d]))] for d, u in zip(domain.tolist(), inside.tolist())])
        self.drawn += torch.bincount(domain, minlength=3)
        outcome = yield Update("student", self.loss, {k: v[chosen] for k, v in self._table.items()})
        gap = torch.zeros(3).index_add_(0, outcome.record["domain"], outcome.record["gap"])
        counted = torch.bincount(outcome.record["domain"], minlength=3).clamp(min=1)
        self.shares.copy_(0.5 * self.shares + 0.5 * (gap / counted).softmax(0))

    def loss(self, batch):
        apart = kl(self.student(batch)["logits"], self.teacher(batch)["logits"])
        loss = Loss.mean("kl", apart)
        loss.record |= {"domain": batch["label"], "gap": apart}
        return loss


def test_more_is_drawn_from_where_the_gap_is_wide(tmp_path):
    class Odd(nn.Module):
        """Disagrees with everybody about class 2 alone."""

        def forward(self, a):
            return torch.tensor([0.0, 0.0, 30.0]) * (a[:, 2:3] > 1.5)

    def build():
        return Domains(), situation(Student(Net(6), view="x"), Teacher(Odd(), view="a"), **PLAIN | {"lr": 1e-4})

    course = survives(build, tmp_path)
    method = course.methods[0]
    assert int(method.drawn.sum()) == 44
    assert method.shares.argmax() == 2
    torch.testing.assert_close(method.shares.sum(), torch.tensor(1.0))
    assert rows(5, 0, 1).ids == ["0", "1", "2", "3", "4"]
