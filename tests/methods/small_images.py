"""Small networks of images and rows for them, for methods that compare layers, and the proof that a run can be cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import checkpoint
from limbeck.engine.course import Course, settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.tasks import Task

NAMES = ["a", "b", "c"]


class CNN(nn.Module):
    """Three resolutions and a linear classifier."""

    def __init__(self, width: int = 4):
        super().__init__()

        def block(channels, to, stride):
            return nn.Sequential(nn.Conv2d(channels, to, 3, stride, 1), nn.BatchNorm2d(to), nn.ReLU())

        self.first, self.second, self.third = (
            block(1, width, 1),
            block(width, 2 * width, 2),
            block(2 * width, 4 * width, 2),
        )
        self.fc = nn.Linear(4 * width, 3)

    def forward(self, x):
        return self.fc(self.third(self.second(self.first(x))).mean((2, 3)))


class ViT(nn.Module):
    """Patches of 2x2, a class token, two blocks."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.cls = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(
            *[nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.blocks(tokens)[:, 0])


def data(rows: int = 24) -> Data:
    g = torch.Generator().manual_seed(0)

    def part(n, first):
        return TensorSplit({"x": torch.randn(n, 1, 8, 8, generator=g), "label": torch.arange(n) % 3}, first)

    splits = {"train": part(rows, 0), "validation": part(9, 100), "test": part(9, 200)}
    return Data(splits, {"x": "", "label": ""}, {"label": NAMES}, source="toy")


Network = nn.Module | Callable[[], nn.Module]
NARROW, WIDE = partial(CNN, 4), partial(CNN, 6)


def situation(
    student: Network = NARROW,
    teacher: Network = WIDE,
    **train: Any,
) -> Situation:
    """What is not a network yet is built from one seed, so that two situations hold the same weights."""
    torch.manual_seed(0)
    teacher, student = (net if isinstance(net, nn.Module) else net() for net in (teacher, student))
    settings = TrainSettings(**({"epochs": 1, "batch_size": 8} | train))
    return Situation(
        Student(student, view="x"), Teacher(teacher, view="x"), Task("classification", labels=NAMES), data(), settings
    )


def settled(method, where: Situation):
    settle(method, where)
    return where.data["train"].__getitems__(list(range(8)))


def in_halves(
    make: Callable[[], tuple[Method, Situation]], folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All weights after a whole run, and after one that was saved in the middle, dropped, and built anew from there."""

    def run(state: dict[str, Any] | None, store: Callable[[int, Any], Any]) -> dict[str, Tensor]:
        method, where = make()
        where.settings = where.settings.model_copy(update={"save_every": 0.0, "select": "last"})
        Course(method, where, store=store).run(state)
        return where.student.model.state_dict() | {f"method.{n}": t for n, t in method.state_dict().items()}

    whole = run(None, lambda position, state: checkpoint.save(folder / str(position), position, state))
    (middle,) = (folder / "2").glob("step-*")
    return whole, run(checkpoint.load(middle), lambda position, state: None)
