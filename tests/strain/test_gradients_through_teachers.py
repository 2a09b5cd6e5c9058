"""A frozen teacher lets gradients through: to its input, into its middle, and through a suffix entered at layer k."""

import copy

import pytest
import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import kl
from limbeck.method import Card, Method, Update
from limbeck.objectives import Loss


class Generator(nn.Module):
    """Makes the teacher's input out of the student's."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return {"logits": torch.zeros(len(x), 3), "made": self.layer(x)}


class ThroughTheInput(Method):
    """The student makes inputs that the frozen teacher recognises."""

    card = Card("through-the-input", teacher_mode="through")

    def trainees(self):
        return {"student": [self.student.model]}

    def loss(self, batch):
        made = self.student(batch)["made"]
        return self.task.loss(self.teacher(batch | {"a": made}), batch)


def test_the_gradient_reaches_what_the_teacher_is_shown(tmp_path):
    def build():
        return ThroughTheInput(), situation(
            Student(Generator(), view="x"), Teacher(Net(4, dropout=0.5), view="a"), **PLAIN
        )

    course = survives(build, tmp_path)
    _, where = fresh(build)
    ours, teacher = where.student.model.layer, where.teacher.model.eval()
    for batch in steps(where):
        loss = nn.functional.cross_entropy(teacher(ours(batch["x"])), batch["label"])
        for p, grad in zip(ours.parameters(), torch.autograd.grad(loss, list(ours.parameters()))):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.layer.weight, ours.weight)
    for kept, first in zip(course.situation.teacher.model.parameters(), fresh(build)[1].teacher.model.parameters()):
        assert torch.equal(kept, first)
        assert kept.grad is None


def test_a_frozen_teacher_in_its_place_is_refused_not_silently_wrong():
    class Wrong(ThroughTheInput):
        card = Card("wrong", teacher_mode="frozen")

    from limbeck.engine.course import Course

    where = situation(Student(Generator(), view="x"), Teacher(Net(4), view="a"))
    with pytest.raises(RuntimeError, match="teacher_mode='through'"):
        Course(Wrong(), where).run()


class Attack(Method):
    """The student learns on inputs moved uphill on the teacher's loss: a gradient taken inside `learn`."""

    card = Card("attack", teacher_mode="through")

    def learn(self, batch, progress):
        with torch.enable_grad():
            x = batch["x"].clone().requires_grad_()
            loss = self.task.loss(self.teacher(batch | {"x": x}), batch).total()
            moved = x + 0.1 * torch.autograd.grad(loss, x)[0].sign()
        yield Update("student", self.loss, batch | {"x": moved.detach()})

    def loss(self, batch):
        return Loss.mean("kl", kl(self.student(batch)["logits"], self.teacher(batch)["logits"]))


def test_a_view_is_moved_along_the_teachers_own_gradient(tmp_path):
    linear = nn.Linear(6, 3)

    def build():
        return Attack(), situation(Student(Net(6), view="x"), Teacher(copy.deepcopy(linear), view="x"), **PLAIN)

    survives(build, tmp_path)
    method, where = fresh(build)
    settle(method, where)
    batch = next(steps(where))
    (update,) = list(method.learn(batch, method.progress))
    p = linear(batch["x"]).softmax(-1) - nn.functional.one_hot(batch["label"], 3)
    torch.testing.assert_close(update.batch["x"], batch["x"] + 0.1 * (p @ linear.weight).sign())


class Stitched(Method):
    """The student's hint, bridged, goes on inside the frozen teacher in place of its own feature."""

    card = Card("stitched", teacher_mode="through", needs=("middle",))
    enter: str = "replace"

    def setup(self):
        self.bridge = nn.Linear(*self.student.shapes["hint"], *self.teacher.shapes["middle"])
        if self.enter == "suffix":
            net = self.teacher.model
            self.suffix = Teacher(nn.Sequential(nn.ReLU(), net.drop, net.out), view="middle")
            self.suffix.mode = "through"

    def loss(self, batch):
        bridged = self.bridge(self.student(batch)["hint"])
        if self.enter == "suffix":
            through = self.suffix(batch | {"middle": bridged})
        else:
            through = self.teacher(batch, replace={"middle": lambda _: bridged})
        return self.task.loss(through, batch) + Loss.mean("size", bridged.square().mean(1))


@pytest.mark.parametrize("enter", ["replace", "suffix"])
def test_a_frozen_suffix_is_entered_at_layer_k(enter, tmp_path):
    def build():
        teacher = Teacher(Net(4, dropout=0.5), view="a", taps={"middle": "fc2"})
        return Stitched(enter=enter), situation(Student(Net(6), view="x", taps={"hint": "fc1"}), teacher, **PLAIN)

    course = survives(build, tmp_path)
    method, where = fresh(build)
    settle(method, where)
    net, theirs = where.student.model, where.teacher.model.eval()
    learning = [*net.fc1.parameters(), *method.bridge.parameters()]
    for batch in steps(where):
        bridged = method.bridge(net.fc1(batch["x"]))
        loss = nn.functional.cross_entropy(theirs.out(torch.relu(bridged)), batch["label"]) + bridged.square().mean()
        for p, grad in zip(learning, torch.autograd.grad(loss, learning)):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.methods[0].bridge.weight, method.bridge.weight)
    torch.testing.assert_close(course.situation.student.model.fc1.weight, net.fc1.weight)
    assert torch.equal(course.situation.teacher.model.out.weight, theirs.out.weight)
