"""Small cases for the methods on logits: vectors, maps and tokens, with labels and with places that do not count."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method
from limbeck.tasks import Task

NAMES = ["ash", "beech", "cedar", "date"]
SHAPES = {"vectors": (5,), "maps": (5, 3, 2), "tokens": (6, 5)}


class Pointwise(nn.Module):
    """Four classes out of five numbers, at every pixel or token."""

    def __init__(self, kind: str = "vectors", classes: int = 4):
        super().__init__()
        self.out = nn.Conv2d(5, classes, 1) if kind == "maps" else nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


def split(kind: str = "vectors", rows: int = 20, seed: int = 1, dtype: torch.dtype = torch.float64) -> TensorSplit:
    g = torch.Generator().manual_seed(seed)
    shape = SHAPES[kind]
    places = {"vectors": (), "maps": shape[1:], "tokens": shape[:1]}[kind]
    label = torch.randint(0, 4, (rows, *places), generator=g)
    kept = torch.rand(rows, *places, generator=g) < 0.7
    if kind != "vectors":
        label = label.masked_fill(torch.rand(rows, *places, generator=g) < 0.3, -100)
    return TensorSplit({"x": torch.randn(rows, *shape, generator=g).to(dtype), "label": label, "kept": kept})


def data(kind: str = "vectors", dtype: torch.dtype = torch.float64, **more: TensorSplit) -> Data:
    splits = {"train": split(kind, dtype=dtype), "validation": split(kind, 12, 2, dtype)}
    return Data({**splits, **more}, {"x": "", "label": "", "kept": ""}, {"label": NAMES}, source="toy")


def situation(
    kind: str = "vectors", *, dtype: torch.dtype = torch.float64, student: Any = None, teacher: Any = None, **train: Any
) -> Situation:
    torch.manual_seed(0)
    student = student or Student(Pointwise(kind), view="x", labels=NAMES)
    teacher = teacher or Teacher(Pointwise(kind), view="x", labels=NAMES)
    for actor in (student, teacher):
        actor.model.to(dtype)
    task = Task("segmentation" if kind == "maps" else "classification", labels=NAMES)
    return Situation(
        student, teacher, task, data(kind, dtype), TrainSettings(**({"epochs": 1, "batch_size": 8} | train))
    )


def settled(method: Method, where: Situation, rows: int = 12) -> dict[str, Any]:
    labels = where.data["train"].tensors.get("label")
    if where.task is not None and labels is not None and labels.dim() == 2:
        where.task.check = lambda *_: None  # the task refuses tokens without a label, which these methods know
    settle(method, where)
    return where.data["train"].__getitems__(list(range(rows)))


def logits(where: Situation, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of student and teacher, with the classes last."""
    last = 1 if batch["x"].dim() == 4 else -1
    return tuple(actor(batch)["logits"].movedim(last, -1) for actor in (where.student, where.teacher))  # type: ignore


def distilled(method: Any, out: Path, kind: str = "vectors", given: Data | None = None, **keys: Any) -> limbeck.Run:
    """A whole run from Python, of a few steps."""
    where = situation(kind, dtype=torch.float32)
    return limbeck.distill(
        data=given or data(kind, torch.float32),
        task="segmentation" if kind == "maps" else "classification",
        teacher=where.teacher,
        student=where.student,
        method=method,
        train={"steps": 3, "batch_size": 8, "log_every": 1},
        control="none",
        out=out,
        **keys,
    )
