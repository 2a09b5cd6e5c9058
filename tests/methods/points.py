"""What the tests of generators share: points of a mixture whose denoiser is known, tiny networks, a situation, and a whole run."""

from contextlib import contextmanager

import torch

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.models.toy import Mixture, PointDenoiser

STEPS = {"optimizer": "sgd", "schedule": "constant", "clip": None, "weight_decay": 0.0, "lr": 0.1, "select": "last"}
MEANS = [[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]]


def mixture(noise="flow", classes=True, std=0.2):
    """Three Gaussians in the plane, one class each."""
    return Mixture(MEANS, std, labels=[0, 1, 2] if classes else None, noise=noise)


def points(count=22, seed=0):
    """Rows of the mixture with their classes, for training and validation."""
    x, label = mixture().draw(2 * count, torch.Generator().manual_seed(seed))
    split = lambda low, high: TensorSplit({"x": x[low:high], "label": label[low:high]}, low)  # noqa: E731
    return Data(
        {"train": split(0, count), "validation": split(count, 2 * count)},
        {"x": "", "label": ""},
        {"label": ["a", "b", "c"]},
        source="points",
    )


def network(noise="flow", head="velocity", classes=3, width=8, **options):
    """A tiny perceptron for the points."""
    return PointDenoiser(width=width, noise=noise, head=head, classes=classes, **options)


def situation(teacher=True, student=None, data=None, **train):
    """Two epochs of three steps by plain gradient descent; the teacher is exact, or a network that was given."""
    given = student or network()
    made = Student(given)
    made.look_at(["x", "label", "id"])
    theirs = None
    if teacher is not False:
        theirs = Teacher(mixture() if teacher is True else teacher)
        theirs.look_at(["x", "label", "id"])
    settings = TrainSettings(**(STEPS | {"epochs": 2, "batch_size": 8} | train))
    return Situation(made, theirs, None, data or points(), settings, seed=5)


def settled(method, where):
    """The method bound and set up, and its first batch as `begin` has it."""
    settle(method, where)
    return method.begin(where.data.splits["train"].__getitems__(list(range(8))))


@contextmanager
def in_double():
    """New tensors, and networks made meanwhile, are of double precision: what is exact may be compared exactly."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def descend(parameters, loss, rate=0.1):
    """One step of plain gradient descent."""
    parameters = list(parameters)
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
        if g is not None:
            p.data -= rate * g


def same(ours, theirs):
    """Two networks have the same weights, up to rounding."""
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=lambda said, name=name: f"{name}: {said}")
