"""A teacher that reads the student's keys and values; a student layer that is fed with the teacher's layer input."""

import torch
from harness import PLAIN, Net, fresh, situation, steps, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine.course import settle
from limbeck.losses import mse
from limbeck.method import Card, Method
from limbeck.objectives import Loss


class Attends(nn.Module):
    """One head of attention over the entries of a row, each made a token."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, 3)

    def forward(self, x):
        tokens = self.embed(x.unsqueeze(-1))
        q, k, v = self.query(tokens), self.key(tokens), self.value(tokens)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))


class BorrowedMemory(Method):
    """The teacher answers from the student's keys and values, and the student learns to be a good memory for it."""

    card = Card("borrowed-memory", teacher_mode="through")

    def prepare(self):
        for actor in (self.student, self.teacher):
            actor.tap("key", "key").tap("value", "value")

    def loss(self, batch):
        ours = self.student(batch)
        asked = self.teacher(batch, replace={n: lambda _, n=n: ours[n] for n in ("key", "value")})
        return self.task.loss(asked, batch)


def test_a_teacher_reads_the_students_keys_and_values(tmp_path):
    def build():
        return BorrowedMemory(), situation(Student(Attends(), view="x"), Teacher(Attends(), view="a"), **PLAIN)

    course = survives(build, tmp_path)
    _, where = fresh(build)
    ours, theirs = where.student.model, where.teacher.model
    learning = [*ours.embed.parameters(), *ours.key.parameters(), *ours.value.parameters()]
    for batch in steps(where):
        tokens, asked = ours.embed(batch["x"].unsqueeze(-1)), theirs.embed(batch["a"].unsqueeze(-1))
        mixed = nn.functional.scaled_dot_product_attention(theirs.query(asked), ours.key(tokens), ours.value(tokens))
        loss = nn.functional.cross_entropy(theirs.out(mixed.mean(1)), batch["label"])
        for p, grad in zip(learning, torch.autograd.grad(loss, learning)):
            p.data -= 0.1 * grad
    torch.testing.assert_close(course.situation.student.model.key.weight, ours.key.weight)
    torch.testing.assert_close(course.situation.student.model.embed.weight, ours.embed.weight)


class LayerByLayer(Method):
    """Each student layer gets what goes into the teacher's layer of the same name, and gives what comes out of it."""

    card = Card("layer-by-layer")
    layers: tuple[str, ...] = ("fc1", "fc2")

    def prepare(self):
        for layer in self.layers:
            for actor in (self.student, self.teacher):
                actor.tap(f"into.{layer}", f"{layer}:input").tap(f"from.{layer}", layer)

    def loss(self, batch):
        theirs = self.teacher(batch)
        ours = self.student(batch, replace={f"into.{n}": lambda _, n=n: theirs[f"into.{n}"] for n in self.layers})
        pairs = {n: mse(ours[f"from.{n}"], theirs[f"from.{n}"]) for n in self.layers}
        return sum((Loss.mean(n, values) for n, values in pairs.items()), start=Loss())


def test_a_student_layer_is_fed_with_the_teachers_layer_input(tmp_path):
    def build():
        return LayerByLayer(), situation(Student(Net(6), view="x"), Teacher(Net(6), view="x"), **PLAIN)

    course = survives(build, tmp_path)
    method, where = fresh(build)
    settle(method, where)
    ours, theirs = where.student.model, where.teacher.model
    for batch in steps(where):
        h1 = theirs.fc1(batch["x"]).detach()
        h2 = theirs.fc2(torch.relu(h1)).detach()
        for layer, given, wanted in ((ours.fc1, batch["x"], h1), (ours.fc2, torch.relu(h1), h2)):
            found = torch.autograd.grad(mse(layer(given), wanted).mean(), list(layer.parameters()))
            for p, grad in zip(layer.parameters(), found):
                p.data -= 0.1 * grad
    for layer in ("fc1", "fc2", "out"):  # the last is not asked for, and so it does not move
        torch.testing.assert_close(getattr(course.situation.student.model, layer).weight, getattr(ours, layer).weight)
