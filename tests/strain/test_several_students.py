"""Several students at once: peers that teach each other, each with an optimiser of its own; one teacher, many sizes."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


class Peers(Method):
    """Deep mutual learning: in turn, each network learns the labels and the other's present opinion."""

    card = Card("peers", teacher_mode="none", needs=())

    def setup(self):
        self.other = Net(4, hidden=9)
        self.peer = Student(self.other, view="a")

    def trainees(self):
        return {"student": [self.student.model], "peer": [self.other]}

    def learn(self, batch, progress):
        theirs = self.peer(batch)["logits"]
        yield Update("student", lambda b: self.towards(self.student, b), batch | {"theirs": theirs})
        theirs = self.student(batch)["logits"]
        yield Update("peer", lambda b: self.towards(self.peer, b), batch | {"theirs": theirs})

    def towards(self, actor, batch):
        logits = actor(batch)["logits"]
        loss = Loss.mean("task", cross_entropy(logits, batch["label"]))
        return loss + Loss.mean("kl", kl(logits, batch["theirs"]))


def test_peers_teach_each_other_in_turn(tmp_path):
    def build(micro_batch="auto"):
        settings = PLAIN | {"trainees": {"peer": {"lr": 0.05, "optimizer": {"use": "sgd", "momentum": 0.9}}}}
        return Peers(), situation(Student(Net(6), view="x"), **settings, micro_batch=micro_batch)

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    method, where = fresh(build)
    settle(method, where)
    ours, other = where.student.model, method.other
    learn = torch.optim.SGD(ours.parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    for batch in steps(where):
        for (net, key), (peer, other_key), optimizer in zip(
            ((ours, "x"), (other, "a")), ((other, "a"), (ours, "x")), learn
        ):
            optimizer.zero_grad()
            logits, theirs = net(batch[key]), peer(batch[other_key]).detach()
            (nn.functional.cross_entropy(logits, batch["label"]) + kl(logits, theirs).mean()).backward()
            optimizer.step()
    for found in (course, cut):
        torch.testing.assert_close(found.situation.student.model.out.weight, ours.out.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.methods[0].other.out.weight, other.out.weight, rtol=1e-4, atol=1e-6)


class Family(Method):
    """One teacher, the student and two smaller ones, in one update: the teacher is asked once."""

    card = Card("family")
    sizes: tuple[int, ...] = (2, 3)

    def setup(self):
        self.nets = nn.ModuleList([Net(6, hidden=h) for h in self.sizes])
        self.small = [Student(net, view="x") for net in self.nets]

    def loss(self, batch):
        theirs = self.teacher(batch)["logits"]
        heard = {"student": self.student(batch)} | {f"small{i}": s(batch) for i, s in enumerate(self.small)}
        return sum((Loss.mean(n, kl(s["logits"], theirs)) for n, s in heard.items()), start=Loss())


def test_a_family_of_students_learns_from_one_teacher(tmp_path):
    def build():
        return Family(), situation(Student(Net(6), view="x"), Teacher(Net(4), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    method, where = fresh(build)
    settle(method, where)
    nets = [where.student.model, *method.nets]
    for batch in steps(where):
        theirs = where.teacher.model(batch["a"]).detach()
        for net in nets:
            loss = kl(net(batch["x"]), theirs).mean()
            for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
                p.data -= 0.1 * grad
    for found, expected in zip([course.situation.student.model, *course.methods[0].nets], nets):
        torch.testing.assert_close(found.out.weight, expected.out.weight)
