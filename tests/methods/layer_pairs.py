"""A small teacher and a smaller student with maps, tokens and vectors inside, for the methods that compare layers."""

import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.tasks import Task

NAMES = ["a", "b", "c"]


class Block(nn.Module):
    def __init__(self, inside: int, out: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(inside, out, 3, stride, 1)

    def forward(self, x):
        return self.conv(x).relu()


class Pyramid(nn.Module):
    """Maps of 8x8, 4x4 and 2x2, then a vector."""

    def __init__(self, width: int):
        super().__init__()
        self.layer1 = Block(1, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.layer3 = Block(2 * width, 3 * width, 2)
        self.fc = nn.Linear(3 * width, 3)

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Former(nn.Module):
    """Sixteen tokens of two pixels squared, three blocks."""

    def __init__(self, width: int = 6, tokens: int = 16):
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(3))
        self.fc, self.tokens = nn.Linear(width, 3), tokens

    def forward(self, x):
        x = self.embed(x).flatten(2).mT[:, : self.tokens]
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean(1))


class Dense(nn.Module):
    """Logits at every pixel."""

    def __init__(self, width: int):
        super().__init__()
        self.body, self.head = Block(1, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return self.head(self.body(x))


class Vectors(nn.Module):
    """Nothing but vectors inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def data(rows: int = 12, dense: bool = False) -> Data:
    g = torch.Generator().manual_seed(0)
    label = torch.arange(rows) % 3
    x = torch.randn(rows, 1, 8, 8, generator=g) + label.view(-1, 1, 1, 1)
    target = (x[:, 0] > 0).long() + (x[:, 0] > 1).long() if dense else label
    counts = torch.rand(rows, 4, 4, generator=g) > 0.3
    split = TensorSplit({"x": x, "label": target, "counts": counts})
    return Data(
        {"train": split, "validation": split},
        {"x": "", "label": "", "counts": ""},
        {"label": NAMES},
        source="toy",
    )


def situation(
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    *,
    dense: bool = False,
    double: bool = False,
    **train,
) -> Situation:
    torch.manual_seed(0)
    teacher, student = teacher or Pyramid(4), student or Pyramid(2)
    rows = data(dense=dense)
    if double:
        student, teacher = student.double(), teacher.double()
        for split in rows.splits.values():
            split.tensors["x"] = split.tensors["x"].double()
    return Situation(
        Student(student, view="x"),
        Teacher(teacher, view="x"),
        Task("segmentation" if dense else "classification", labels=NAMES),
        rows,
        TrainSettings(**({"steps": 2, "batch_size": 6} | train)),
    )


def settled(method: Method, where: Situation) -> dict:
    """The method set up in its situation, and a batch of eight rows."""
    settle(method, where)
    return where.data["train"].__getitems__(list(range(8)))


def keys(student: nn.Module | None = None, teacher: nn.Module | None = None, *, dense: bool = False, **more) -> dict:
    """A recipe for `limbeck.distill` over two steps."""
    torch.manual_seed(0)
    rows = data(dense=dense)
    task = {"use": "segmentation" if dense else "classification", "target": "label", "labels": NAMES}
    return {
        "task": task,
        "data": rows,
        "teacher": Teacher(teacher or Pyramid(4), view="x"),
        "student": Student(student or Pyramid(2), view="x"),
        "control": "none",
        "train": {"steps": 2, "batch_size": 6},
    } | more
