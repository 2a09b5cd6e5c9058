"""A folder with a user's own modules, as a recipe would find them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MODELS = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width: int = 4, classes: int = 3):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.last = nn.Linear(width, classes)

    def forward(self, x):
        return self.last(self.first(x).relu())


finished = Small(2)
"""

LOSSES = """
from torch import Tensor


def gap(student: Tensor, teacher: Tensor, *, power: float = 2.0):
    return (student - teacher).abs().pow(power).mean(-1)
"""

METHODS = """
from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.losses import mse
from limbeck.method import Method, Procedure, Transfer
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class MyMethod(Transfer):
    strength: Annotated[float, Field(gt=0)] = 1.0
    mode: Literal["soft", "hard"] = "soft"
    share: Scalar = 0.5

    def objective(self):
        return Objective(Term(mse))


class OwnConstructor(Method):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers


class Chosen(Method):
    choose: Any = None


class MyRounds(Procedure):
    rounds: int = 2
"""

DATA = """
import torch
from limbeck.data.tensors import Data, TensorSplit


def make(rows: int = 6, target: str = "label") -> Data:
    def split(first):
        x = torch.arange(rows * 5.0).reshape(rows, 5)
        return TensorSplit({"x": x, target: torch.arange(rows) % 3}, first)

    return Data({"train": split(0), "test": split(rows)}, labels={target: ["a", "b", "c"]}, source="my_data")
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: my_models, my_losses, my_data, and my_package.module."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    for name, text in (
        ("my_models", MODELS),
        ("my_losses", LOSSES),
        ("my_data", DATA),
        ("my_package/module", METHODS),
    ):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    ours = ("my_models", "my_losses", "my_data", "my_package")
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
