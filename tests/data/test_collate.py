"""Tensors are stacked, everything else is listed, and what does not fit is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.collate import collate, listed
from limbeck.errors import RecipeError


@given(st.integers(1, 5), st.lists(st.integers(0, 3), max_size=3))
def test_a_batch_has_the_rows_in_order(count: int, shape: list[int]) -> None:
    rows = [{"x": torch.full(shape, row), "words": f"row {row}", "chat": [row]} for row in range(count)]
    batch = collate(rows, [str(row) for row in range(count)])
    assert list(batch) == ["x", "words", "chat"]
    assert batch["x"].shape == (count, *shape)
    assert torch.equal(batch["x"], torch.stack([row["x"] for row in rows]))
    assert batch["words"] == [f"row {row}" for row in range(count)]
    assert batch["chat"] == [[row] for row in range(count)]


def test_unequal_shapes_name_the_column_and_the_rows() -> None:
    rows = [{"sound": torch.zeros(length)} for length in (4, 4, 3, 4, 5)]
    with pytest.raises(RecipeError) as caught:
        collate(rows, ["a", "b", "c", "d", "e"])
    assert str(caught.value) == (
        "The column 'sound' cannot be made into one tensor: 3 rows of this batch have float32 [4], but "
        "c float32 [3], e float32 [5]. Rows of a batch need one shape and type."
    )


def test_unequal_types_are_refused_too() -> None:
    with pytest.raises(RecipeError, match=r"column 'x'.*b int64 \[\]"):
        collate([{"x": torch.tensor(1.0)}, {"x": torch.tensor(1)}, {"x": torch.tensor(1.0)}], ["a", "b", "c"])
    with pytest.raises(RecipeError, match=r"column 'x'.*b str"):
        collate([{"x": torch.tensor(1.0)}, {"x": "1"}, {"x": torch.tensor(1.0)}], ["a", "b", "c"])


def test_a_missing_column_names_the_rows() -> None:
    with pytest.raises(RecipeError, match=r"The column 'y' is missing in b\."):
        collate([{"y": 1}, {"x": 1}], ["a", "b"])


def test_lists_are_shortened() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(8)]) == "0, 1, 2, 3, 4 and 3 more"
