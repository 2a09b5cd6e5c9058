"""What a column holds, guessed from suffix and content, and said."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image as Pil

from limbeck.data import load_data
from limbeck.data.column import Column
from limbeck.data.columns import Array, Audio, Image, Label, Number, Text
from limbeck.data.guess import guess
from limbeck.errors import RecipeError

PICTURE = io.BytesIO()
Pil.new("L", (1, 1)).save(PICTURE, "PNG")


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("x", ["a/1.png", "2.JPG"], Image()),
        ("x", ["1.npy"], Array()),
        ("x", ["[1, 2]", " [3]"], Array()),
        ("x", ['[{"a": 1}]', "[1]"], Text()),
        ("x", ["[sic]"], Text()),
        ("x", [[1, 2.5]], Array()),
        ("x", [torch.zeros(3)], Array()),
        ("x", [np.zeros((2, 2))], Array()),
        ("x", ["1.png", "some words"], Text()),
        ("x", ["1", "2.5"], Number()),
        ("x", [3], Number()),
        ("label", [3], Label()),
        ("label", [torch.tensor(3)], Label()),
        ("label", [0.5], Number()),
        ("target", ["0.5", "1"], Number()),
        ("target", ["2", "1"], Label()),
        ("target", ["two", "one"], Text()),
        ("x", [[[1.0], [2.0, 3.0]]], Text()),
        ("label", ["3", "4"], Label()),
        ("Class", ["a", "4"], Label()),
        ("x", [["a", "b"]], Text()),
        ("x", [{"role": "user"}], Text()),
        ("x", [PICTURE.getvalue()], Image()),
        ("x", [{"bytes": b"RIFF....WAVE", "path": None}], Audio()),
        ("x", [{"bytes": b"....", "path": "a.flac"}], Audio()),
        ("x", [{"array": [0.0], "sampling_rate": 8000}], Audio(rate=8000)),
        ("x", [Pil.new("L", (1, 1))], Image()),
        ("x", ["", None, "7"], Number()),
        ("x", ["", None], None),
    ],
)
def test_kinds(name: str, cells: list[Any], kind: Column | None) -> None:
    assert guess(name, [(cell, Path()) for cell in cells]) == kind


def test_recordings_keep_their_rate_and_text_files_are_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(4), 11025)
    (tmp_path / "a.txt").write_text("words")
    assert guess("x", [("gone.wav", tmp_path), ("a.wav", tmp_path)]) == Audio(rate=11025)
    assert guess("x", [("a.txt", tmp_path)]) == Text(file=True)
    assert guess("x", [("b.txt", tmp_path)]) == Text()


def test_the_one_text_column_that_repeats_is_the_class(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("words,kind\n" + "".join(f"words {row},{'ab'[row % 2]}\n" for row in range(40)))
    assert load_data(path).labels == {"kind": ["a", "b"]}
    path.write_text("one,two\n" + "".join("a,b\nb,a\n" for _ in range(20)))
    data = load_data(path)
    assert data.labels == {}
    assert data["train"].__getitems__([0, 1])["one"] == ["a", "b"]


def test_what_was_guessed_is_said_and_what_the_user_says_counts(pictures: Path) -> None:
    sentence = (
        "Columns were guessed from the first 30 rows: image as image; label as label. Say data.columns to change it."
    )
    assert sentence in load_data(pictures).notices
    said = load_data(pictures, columns={"image": "image", "label": "label"})
    assert not any("guessed" in notice for notice in said.notices)
    assert "image" not in load_data(pictures, columns={"image": None}).columns
    assert load_data(pictures, columns={"image": "text"})["train"][0]["image"] == "img/0.png"


def test_wrong_columns(pictures: Path, table: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no column 'imgae'\. Did you mean 'image'"):
        load_data(pictures, columns={"imgae": "image"})
    with pytest.raises(RecipeError, match="has no columns to learn from"):
        load_data(pictures, columns={"image": None, "label": None})
    path = table(tmp_path / "b.csv", ["x", "note"], [[row, ""] for row in range(40)])
    assert "The column 'note' is empty and was left out." in load_data(path).notices
