"""Small files to load."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil


def save_picture(path: Path, value: int = 0, size: tuple[int, int] = (2, 2)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


def save_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture
def picture() -> Callable[..., Path]:
    return save_picture


@pytest.fixture
def table() -> Callable[..., Path]:
    return save_csv


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A manifest of 30 grey 2 x 2 pictures of value `row`, three classes, 18 / 6 / 6 rows."""
    rows = []
    for row in range(30):
        save_picture(tmp_path / "img" / f"{row}.png", row)
        split = "train" if row < 18 else "val" if row < 24 else "test"
        rows.append([f"img/{row}.png", ["ape", "bee", "cat"][row % 3], split])
    return save_csv(tmp_path / "manifest.csv", ["image", "label", "split"], rows)
