"""What a user may name as data, in which order it is understood, and what a slip of the keyboard is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data import Data, built_in, load_data
from limbeck.data.tensors import TensorSplit
from limbeck.errors import RecipeError

MODULE = """
import torch
from limbeck.data.tensors import Data, TensorSplit

def make(rows: int = 4, *, value: float = 0.0):
    return Data({"train": TensorSplit({"x": torch.full((rows,), value)})}, source="made")

def rows(count):
    return [{"x": [row], "label": row % 2} for row in range(count)]

class Points:
    def __len__(self): return 60
    def __getitem__(self, row): return {"x": torch.tensor([row])}

points = 5
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module in the current folder, under a name that no other test has imported."""
    name = f"own_data_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_data_are_given_back(pictures: Path) -> None:
    data = load_data(pictures)
    assert load_data(data) is data
    with pytest.raises(RecipeError, match="is decoded already: columns, split and id are for files"):
        load_data(data, columns={"image": "image"})


def test_a_function_from_the_current_folder(here: str) -> None:
    assert len(load_data(f"{here}:make")["train"]) == 4
    data = load_data(f"{here}:make", args={"rows": 2, "value": 3.0})
    assert len(data["train"]) == 2
    assert data["train"][1]["x"] == 3


def test_a_function_may_give_rows_or_a_dataset(here: str) -> None:
    assert load_data(f"{here}:rows", args={"count": 60}).labels == {"label": ["0", "1"]}
    assert sum(map(len, load_data(f"{here}:Points").splits.values())) == 60


def test_arguments_that_do_not_fit(here: str, pictures: Path) -> None:
    with pytest.raises(
        RecipeError, match=rf"data.args do not fit {here}:make\(rows.*unexpected keyword argument 'row'"
    ):
        load_data(f"{here}:make", args={"row": 1})
    with pytest.raises(RecipeError, match=r"do not fit .*missing a required argument: 'count'"):
        load_data(f"{here}:rows")
    with pytest.raises(RecipeError, match=r"data\.args are for functions"):
        load_data(pictures, args={"rows": 1})
    with pytest.raises(RecipeError, match="data is of type int; needed is a path"):
        load_data(f"{here}:points")


def test_a_module_or_function_that_is_not_there(here: str) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'make'"):
        load_data(f"{here}:mak")
    with pytest.raises(RecipeError, match="there is no module no_such_module"):
        load_data("no_such_module:make")


def test_a_short_name(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(built_in.BUILT_IN, "toy-points", f"{here}:make")
    assert load_data("toy-points", args={"value": 2.0})["train"][0]["x"] == 2
    with pytest.raises(RecipeError, match=r"data 'toy-point': there is no such path here.*Did you mean 'toy-points'\?"):
        load_data("toy-point")


def test_a_path_comes_before_a_name(here: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(built_in.BUILT_IN, "manifest.csv", f"{here}:make")
    assert len(load_data("manifest.csv")["train"]) == 18


def test_paths_that_are_not_there(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures.parent)
    with pytest.raises(RecipeError, match=r"There is no mainfest\.csv .*Did you mean 'manifest\.csv'\?"):
        load_data("mainfest.csv")
    with pytest.raises(RecipeError, match=r"There is no /no/such/place"):
        load_data("/no/such/place")
    with pytest.raises(RecipeError, match="There is no imgs"):
        load_data(Path("imgs"))
    with pytest.raises(RecipeError, match=r"0\.png is no manifest; its name would end in \.csv"):
        load_data("img/0.png")


def test_a_mapping_of_paths_and_datasets(pictures: Path, tmp_path: Path) -> None:
    lines = pictures.read_text().splitlines()
    other = tmp_path / "more.csv"
    other.write_text("\n".join([lines[0], *lines[1:10]]))
    data = load_data({"train": str(pictures), "dev": pictures, "test": other})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 30, "validation": 30, "test": 9}
    assert data["test"][8]["id"] == 68
    assert torch.equal(data["test"][8]["image"], torch.full((1, 2, 2), 8 / 255))
    with pytest.raises(RecipeError, match=r"write \{train: path, test: path\}"):
        load_data({})


def test_an_id_in_two_splits_is_a_leak_that_is_told(pictures: Path) -> None:
    text = pictures.read_text().replace("image,label,split", "key,label,split")
    pictures.write_text(text)
    with pytest.raises(RecipeError, match=r"row img/0\.png: this id belongs to row number 0 already \(this is 30\)"):
        load_data({"train": pictures, "test": pictures}, id="key", columns={"label": "label"})


@pytest.mark.parametrize("source", [None, 3, 2.5])
def test_what_cannot_be_data(source: Any) -> None:
    with pytest.raises(RecipeError, match="needed is a path, module:function, a Dataset of dicts"):
        load_data(source)


def test_splits_of_other_data_can_be_put_together(pictures: Path) -> None:
    first = load_data(pictures)
    data = load_data({"train": first["train"], "validation": first["validation"], "test": first["test"]})
    assert data["test"].ids == first["test"].ids
    assert torch.equal(data["test"][2]["image"], first["test"][2]["image"])
    memory = Data({"train": TensorSplit({"x": torch.arange(60.0)}), "test": TensorSplit({"x": torch.ones(6)}, 60)})
    again = load_data(memory.splits)
    assert again["test"].ids == [str(row) for row in range(60, 66)]
    assert sorted(map(int, again["train"].ids + again["validation"].ids)) == list(range(60))
