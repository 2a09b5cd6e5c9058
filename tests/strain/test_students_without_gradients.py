"""Students that learn without gradients: a memory that is filled, statistics that are counted. They yield nothing."""

import torch
from harness import Net, situation, survives
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.method import Card, Method


class Neighbours(nn.Module):
    """Answers with the mean of what the teacher said about the three nearest rows it remembers."""

    def __init__(self, rows):
        super().__init__()
        self.register_buffer("keys", torch.full((rows, 6), torch.inf))
        self.register_buffer("answers", torch.zeros(rows, 3))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        nearest = torch.cdist(x, self.keys).topk(3, largest=False).indices
        return self.answers[nearest].mean(1)


class Memorise(Method):
    """No gradient anywhere: what the teacher says is written down."""

    card = Card("memorise")

    def trainees(self):
        return {}

    def learn(self, batch, progress):
        memory, theirs = self.student.model, self.teacher(batch)["logits"]
        memory.keys[batch["id"]], memory.answers[batch["id"]] = batch["x"], theirs
        memory.filled += len(theirs)
        return
        yield


class Seen:
    """An observer that keeps what it was told."""

    def __init__(self):
        self.steps = []

    def say(self, sentence): ...
    def stage(self, name, steps, done): ...
    def validation(self, progress, loss, metric): ...

    def step(self, progress, loss, samples_per_s):
        self.steps.append(progress.step)


def test_a_memory_is_filled_from_what_the_teacher_says(tmp_path):
    seen = Seen()

    def build():
        where = situation(Student(Neighbours(22), view="x"), Teacher(Net(4), view="a"), epochs=1, select="last")
        where.observer = seen
        return Memorise(), where

    course = survives(build, tmp_path)
    memory, train = course.situation.student.model, course.situation.data.splits["train"].tensors
    assert int(memory.filled) == 22
    assert torch.equal(memory.keys, train["x"])
    torch.testing.assert_close(memory.answers, course.situation.teacher(train)["logits"])
    assert course.results[0].metric is not None  # validated like any other student
    assert {0, 1, 2} <= set(seen.steps)  # and its progress is shown although nothing is updated


def test_the_best_epoch_of_a_memory_is_selected_too(tmp_path):
    def build():
        return Memorise(), situation(Student(Neighbours(22), view="x"), Teacher(Net(4), view="a"), epochs=2)

    course = survives(build, tmp_path)
    # Both epochs write the same answers, so the second is not better, and what stays is the memory after the first.
    assert course.results[0].selected_epoch == 0
    assert int(course.situation.student.model.filled) == 22
