from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError


def split(rows: int = 5, first_id: int = 0) -> TensorSplit:
    return TensorSplit(
        {"image": torch.arange(rows * 4.0).reshape(rows, 1, 2, 2), "label": torch.arange(rows) % 3}, first_id=first_id
    )


def data(**changed: object) -> Data:
    parts: dict = {
        "splits": {"train": split(), "test": split(2, 5)},
        "columns": {"image": "grey image", "label": "class"},
        "labels": {"label": ["a", "b", "c"]},
        "source": "toy",
    }
    return Data(**{**parts, **changed})


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9))
def test_a_batch_is_the_stack_of_its_rows(indices: list[int]) -> None:
    rows = split(first_id=7)
    batch = rows.__getitems__(indices)
    for name in ("image", "label", "id"):
        assert torch.equal(batch[name], torch.stack([rows[i][name] for i in indices]))
    assert batch["id"].tolist() == [7 + i for i in indices]
    assert batch["id"].dtype == torch.int64


def test_rows_can_be_counted_and_walked() -> None:
    rows = split()
    assert len(rows) == len(list(rows)) == 5
    assert rows.ids == ["0", "1", "2", "3", "4"]
    assert TensorSplit({"x": torch.zeros(2)}, ids=["left", "right"]).ids == ["left", "right"]


def test_bad_columns_are_refused_in_a_sentence() -> None:
    with pytest.raises(RecipeError, match="one common number of rows"):
        TensorSplit({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(RecipeError, match="one common number of rows"):
        TensorSplit({})
    with pytest.raises(RecipeError, match="first_id"):
        TensorSplit({"id": torch.zeros(2)})
    with pytest.raises(RecipeError, match="3 ids"):
        TensorSplit({"a": torch.zeros(2)}, ids=["x", "y", "z"])


def test_the_fingerprint_follows_rows_types_and_class_names() -> None:
    same = data().fingerprint
    assert same == data(source="elsewhere", columns={}).fingerprint
    other = split()
    other.tensors["image"][0, 0, 0, 0] = 0.5
    halves = TensorSplit({"image": split().tensors["image"].half(), "label": split().tensors["label"]})
    assert (
        len(
            {
                same,
                data(splits={"train": other, "test": split(2, 5)}).fingerprint,
                data(splits={"train": halves, "test": split(2, 5)}).fingerprint,
                data(splits={"train": split(2, 5), "test": split()}).fingerprint,
                data(labels={"label": ["a", "c", "b"]}).fingerprint,
            }
        )
        == 5
    )
    assert data(fingerprint="given").fingerprint == "given"


def test_a_split_on_disk_must_bring_its_fingerprint() -> None:
    class Lazy:
        ids = ["0"]

        def __len__(self) -> int:
            return 1

    with pytest.raises(RecipeError, match="'train' is not held in memory"):
        Data(splits={"train": Lazy()})
    assert Data(splits={"train": Lazy()}, fingerprint="f").describe().startswith("data: 1 train")


def test_describe_and_missing_splits() -> None:
    text = data().describe()
    assert "5 train, 2 test" in text
    assert "image [1, 2, 2]: grey image" in text
    assert "3 classes (a, b, c)" in text
    with pytest.raises(RecipeError, match="Did you mean 'test'"):
        data()["tests"]
