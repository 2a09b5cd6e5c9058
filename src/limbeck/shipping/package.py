"""What a format is given to write: the student, the names of its inputs, and real samples of the run's data."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Student
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.tasks import Task

MOST = 256  # samples on which a graph is compared with PyTorch
CALIBRATION = 128  # training samples that set the ranges of int8


@dataclass
class Rows:
    """The data that an export is made and checked with, and what right means for them."""

    data: Data
    task: Task

    @property
    def split(self) -> str:
        """Where figures are measured: test, else validation, else train."""
        return next(name for name in ("test", "validation", *self.data.splits) if name in self.data.splits)

    def batch(self, split: str, most: int, first: int = 0) -> dict[str, Any]:
        """Up to `most` rows of a split, from `first` on."""
        rows = self.data[split]
        return dict(rows.__getitems__(list(range(min(first, len(rows)), min(first + most, len(rows))))))

    def batches(self, split: str, size: int = 128, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a split (the first `most`) in order."""
        count = len(self.data[split]) if most is None else min(most, len(self.data[split]))
        for first in range(0, count, size):
            yield self.batch(split, min(size, count - first), first)


@dataclass
class Package:
    """Everything a format may need. `shipped`: the student folder as training left it; None for one without a run."""

    student: Student
    folder: Path
    quantize: str = "none"
    rows: Rows | None = None
    shipped: Path | None = None

    def __post_init__(self) -> None:
        self.student = on_cpu(self.student)

    def origin(self) -> Path | None:
        """The folder with what the network's library needs beside weights: the student's own, or that which it was begun from."""
        source = self.student.source
        places = [self.shipped, source.weights, *(spec["model"] for spec in (source.spec, source.origin) if spec)]
        folders = [Path(place) for place in places if place]
        return next((place for place in folders if (place / "config.json").exists()), None)

    def needed_rows(self, to: str) -> Rows:
        """The rows, for a format that cannot do without.

        Raises:
            RecipeError: there are none.
        """
        if self.rows is None:
            raise RecipeError(
                f"{to} is traced and checked with real samples, and the data of this run cannot be had from its recipe (it cannot be read, or they were given in Python). "
                "Name them: --data FILE. Without data: --to safetensors"
            )
        return self.rows


def on_cpu(student: Student) -> Student:
    """A copy in eval mode on the CPU that leaves the given one as it is."""
    made = Student(
        copy.deepcopy(student.model).cpu().eval(), view=student.view, taps=student.paths, labels=student.labels
    )
    made.source = student.source
    return made


def input_names(student: Student) -> tuple[str, ...]:
    """What the inputs of a graph are called: a column that is given by position, the parameter of one given by keyword."""
    assert student.view is not None
    return tuple(dict.fromkeys((*student.view.keys, *student.view.named)))


def inputs(student: Student, batch: dict[str, Any]) -> dict[str, Tensor]:
    """What the model is called with for this batch, by `input_names`, after the view's transforms.

    Raises:
        RecipeError: a column is not a tensor, so that no graph can take it.
    """
    args, kwargs = student.shown(batch)
    assert student.view is not None
    found = dict(zip(student.view.keys, args)) | kwargs
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise RecipeError(
                f"the student is shown '{name}' as {type(value).__name__}, and a graph takes tensors. "
                "Let the view make them (a transform that tokenises), or ship the weights: --to safetensors"
            )
    return {name: found[name] for name in input_names(student)}


def varying(one_by_one: Sequence[dict[str, Tensor]]) -> dict[str, list[int]]:
    """Per input the dimensions, besides the batch, in which single samples differ: lengths of texts, sizes of images."""
    first = one_by_one[0]
    return {
        name: [d for d in range(1, first[name].dim()) if len({sample[name].shape[d] for sample in one_by_one}) > 1]
        for name in first
    }


def examples(student: Student, rows: Rows) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Real inputs to trace with (at least two rows, since one row would be taken for a constant), and what varies."""
    split = rows.split
    count = len(rows.data[split])
    batch = rows.data[split].__getitems__([i % count for i in range(4)])
    with torch.no_grad():
        singles = [inputs(student, dict(rows.data[split].__getitems__([i]))) for i in range(min(4, count))]
        return inputs(student, dict(batch)), varying(singles)
