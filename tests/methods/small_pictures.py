"""Small pictures, small networks with two resolutions, and a run from a recipe's words to a finished folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import PLAIN
from torch import Tensor, nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.tasks import Task

NAMES = ["ash", "beech", "cedar"]


class Block(nn.Module):
    def __init__(self, inside: int, out: int, stride: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inside, out, 3, stride, 1), nn.GroupNorm(1, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Eye(nn.Module):
    """[2, 8, 8] to a map of 8x8, one of 4x4, one of 2x2, a mean, logits. `norm` puts a BatchNorm before the head."""

    def __init__(self, width: int = 4, classes: int = 3, norm: bool = False):
        super().__init__()
        self.low, self.middle, self.high = Block(2, width, 1), Block(width, width, 2), Block(width, 2 * width, 2)
        self.norm = nn.BatchNorm1d(2 * width) if norm else nn.Identity()
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.high(self.middle(self.low(x))).mean((2, 3))))


def rows(count: int, first: int, seed: int) -> TensorSplit:
    """Pictures whose class is where they are brighter."""
    g = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 3
    x = torch.randn(count, 2, 8, 8, generator=g)
    for y in range(3):
        x[label == y, :, 2 * y : 2 * y + 3] += 1.5
    return TensorSplit({"x": x, "label": label}, first)


def pictures(train: int = 22, first: int = 0) -> Data:
    """22 training rows (steps of 8, 8 and 6), numbered from `first`; 12 for validation, 12 for the test."""
    splits = {"train": rows(train, first, 1), "validation": rows(12, 500, 2), "test": rows(12, 600, 3)}
    return Data(splits, {"x": "", "label": ""}, {"label": NAMES}, source="pictures")


def situation(*, teacher: bool = True, data: Data | None = None, norm: bool = False, **train: Any) -> Situation:
    """Two epochs of three steps by plain gradient descent."""
    settings = TrainSettings(**(PLAIN | {"epochs": 2, "batch_size": 8} | train))
    student = Student(Eye(norm=norm), view="x")
    taught = Teacher(Eye(6), view="x") if teacher else None
    return Situation(student, taught, Task("classification", labels=NAMES), data or pictures(), settings, seed=5)


def settled(method: Method, where: Situation, count: int = 8) -> dict[str, Any]:
    """Bind and set up; gives the first training rows as a batch."""
    settle(method, where)
    return where.data["train"].__getitems__(list(range(count)))


def doubled(where: Situation) -> Situation:
    """The same in float64."""
    for actor in (where.student, where.teacher):
        if actor is not None:
            actor.model.double()
    for split in where.data.splits.values():
        split.tensors["x"] = split.tensors["x"].double()  # type: ignore[attr-defined]
    return where


def distilled(method: Any, out: Path, *, teacher: bool = True, **keys: Any) -> limbeck.Run:
    """A whole run through the front door: no teacher in the recipe unless there is one."""
    torch.manual_seed(0)
    given: dict[str, Any] = {"teacher": {"model": Eye(6), "view": "x"}} if teacher else {}
    given |= {"student": {"model": Eye(), "view": "x"}, "task": "classification", "data": pictures()}
    train = {"epochs": 2, "batch_size": 8, "lr": 1e-2}
    return limbeck.distill(method=method, train=train, control="none", out=out / "run", **given, **keys)
