"""Label spaces that overlap only in part; experts that each know some of the classes."""

import pytest
import torch
from harness import PLAIN, Net, fresh, situation, steps, survives

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.labels import match
from limbeck.losses import cross_entropy, kl
from limbeck.method import Card, Method
from limbeck.methods.kd import KD
from limbeck.objectives import Loss
from limbeck.teachers.mixture import Mixture

OURS = ["ash", "beech", "cedar"]


def test_kd_compares_the_shared_classes_only(tmp_path):
    """The teacher knows oak (which the student does not), two kinds of beech, cedar; no ash."""

    def build():
        teacher = Teacher(
            Net(4, classes=4),
            view="a",
            labels=["oak", "cedar", "copper beech", "green beech"],
            label_map={"copper beech": "beech", "green beech": "beech"},
        )
        return KD(temperature=2.0), situation(Student(Net(6), view="x", labels=OURS), teacher, **PLAIN)

    course = survives(build, tmp_path)
    _, where = fresh(build)
    net = where.student.model
    for batch in steps(where):
        logits, theirs = net(batch["x"]), where.teacher.model(batch["a"]).detach()
        shared = torch.stack([theirs[:, 2:].logsumexp(-1), theirs[:, 1]], 1)
        loss = cross_entropy(logits, batch["label"]).mean() + kl(logits[:, 1:], shared, temperature=2.0).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.out.weight, net.out.weight)


def test_sizes_that_differ_without_names_are_refused():
    where = situation(Student(Net(6), view="x"), Teacher(Net(4, classes=4), view="a"))
    with pytest.raises(RecipeError, match=r"student logits have 3 classes, teacher logits 4\. Give both their names"):
        settle(KD(), where)


def test_experts_of_different_classes_have_no_mixed_logits():
    members = {
        n: Teacher(Net(4, classes=2), view="a", labels=known) for n, known in (("e", ["a", "b"]), ("w", ["b", "c"]))
    }
    where = situation(Student(Net(6), view="x"), Mixture(members))
    with pytest.raises(RecipeError, match="e and w name different labels, so their logits cannot be mixed"):
        settle(KD(), where)


class Experts(Method):
    """Each expert teaches the classes that it knows, on the rows whose label it knows."""

    card = Card("experts")

    def setup(self):
        self.found = {n: match(OURS, m.labels, m.label_map) for n, m in self.teacher.members.items()}

    def loss(self, batch):
        logits = self.student(batch)["logits"]
        loss = Loss.mean("task", cross_entropy(logits, batch["label"]))
        for name, expert in self.teacher.members.items():
            here, theirs = self.found[name], expert(batch)["logits"]
            knows = torch.isin(batch["label"], torch.tensor(here.student))
            loss = loss + Loss.mean(name, kl(here.of_student(logits), here.of_teacher(theirs)), knows)
        return loss


def test_experts_that_each_know_a_part(tmp_path):
    def build(micro_batch="auto"):
        known = {"east": ["beech", "ash"], "west": ["cedar", "beech"]}
        members = {name: Teacher(Net(4, classes=2), view="a", labels=labels) for name, labels in known.items()}
        return Experts(), situation(
            Student(Net(6), view="x", labels=OURS), Mixture(members), **PLAIN, micro_batch=micro_batch
        )

    course, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    _, where = fresh(build)
    net, experts = where.student.model, where.teacher.members
    for batch in steps(where):
        logits = net(batch["x"])
        loss = cross_entropy(logits, batch["label"]).mean()
        for name, ours in (("east", [1, 0]), ("west", [2, 1])):
            knows = torch.isin(batch["label"], torch.tensor(ours))
            if knows.any():
                theirs = experts[name].model(batch["a"][knows]).detach()
                loss = loss + kl(logits[knows][:, ours], theirs).mean()
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters()))):
            p.data -= 0.1 * grad
    for found in (course, cut):
        torch.testing.assert_close(found.situation.student.model.out.weight, net.out.weight, rtol=1e-4, atol=1e-5)
