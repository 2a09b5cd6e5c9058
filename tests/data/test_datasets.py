"""Any map-style Dataset of dicts is data; sources by split; Hugging Face sets by name."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image as Pil
from torch.utils.data import Dataset, IterableDataset

from limbeck.data import Image, Label, load_data
from limbeck.errors import RecipeError


class Points(Dataset):
    """Rows without `__getitems__`; `x` differs at each reading when `noisy`."""

    def __init__(self, rows: int = 60, noisy: bool = False) -> None:
        self.rows, self.noisy, self.reads = rows, noisy, 0

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.reads += 1
        noise = self.reads / 1000 if self.noisy else 0
        return {"x": torch.tensor([index + noise, 1.0]), "label": index % 2, "text": f"row {index}"}


def test_a_dataset_of_dicts() -> None:
    data = load_data(Points())
    assert data.labels == {"label": ["0", "1"]}
    assert data.columns["x"] == "array, float32 [2]"
    for split in data.splits.values():
        batch = split.__getitems__(range(len(split)))
        assert torch.equal(batch["x"][:, 0], batch["id"].float())
        assert torch.equal(batch["label"], batch["id"] % 2)
        assert batch["text"] == [f"row {id}" for id in batch["id"].tolist()]


def test_a_dataset_is_read_anew_so_that_it_may_augment_and_its_fingerprint_stays() -> None:
    data = load_data(Points(noisy=True))
    assert data["train"][0]["x"][0] != data["train"][0]["x"][0]
    assert load_data(Points(noisy=True)).fingerprint == load_data(Points()).fingerprint
    assert load_data(Points(61)).fingerprint != load_data(Points()).fingerprint


def test_datasets_by_split_and_a_missing_one_is_made() -> None:
    data = load_data({"train": Points(200), "test": Points(20)})
    assert len(data["test"]) == 20
    assert len(data["train"]) + len(data["validation"]) == 200
    assert 5 < len(data["validation"]) < 40
    assert data["test"].ids[3] == "test/3"
    assert data["test"][3]["id"] == 203
    with pytest.raises(RecipeError, match="mean the split 'validation'"):
        load_data({"val": Points(), "dev": Points()})


def test_a_list_of_dicts_and_columns_by_name() -> None:
    rows = [{"photo": Pil.new("L", (3, 3), row), "name": f"n{row}", "kind": "ab"[row % 2]} for row in range(60)]
    data = load_data(rows, columns={"photo": Image(size=2), "kind": Label(names=["b", "a"])}, id="name")
    row = data["test"][0]
    number = int(row["id"])
    assert data["test"].ids[0] == f"n{number}"
    assert torch.equal(row["photo"], torch.full((1, 2, 2), number / 255))
    assert row["kind"] == 1 - number % 2


def test_what_a_dataset_raises_is_a_bad_row() -> None:
    class Faulty(Points):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 7:
                raise KeyError("lost")
            return super().__getitem__(index) if index != 8 else (1, 2)  # type: ignore[return-value]

    with pytest.raises(RecipeError) as caught:
        load_data(Faulty())
    assert "row 7 cannot be read (KeyError: 'lost')" in str(caught.value)
    assert "row 8 is a tuple, not a dict of columns" in str(caught.value)
    assert sum(map(len, load_data(Faulty(), skip_bad=True).splits.values())) == 58


def test_shapes_that_change_after_the_check_are_told_with_column_and_ids() -> None:
    class Growing(Points):
        def __getitem__(self, index: int) -> dict[str, Any]:
            row = super().__getitem__(index)
            return {**row, "x": torch.zeros(1 + grown * (index % 2))}

    grown = False
    data = load_data(Growing())
    assert data["train"].__getitems__([0, 1, 2])["x"].shape == (3, 1)
    grown = True
    with pytest.raises(RecipeError, match=r"column 'x' cannot be made into one tensor: .* but 1 float32 \[2\]"):
        data["train"].__getitems__([0, 1, 2])


def test_what_is_no_dataset_of_dicts() -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(())

    class Tuples(Points):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(1), 0

    with pytest.raises(RecipeError, match="needed is a map-style Dataset"):
        load_data(Stream())
    with pytest.raises(RecipeError, match=r'items of Tuples are of type tuple; .*\{"image": image, "label": label\}'):
        load_data(Tuples())

    class Locked(Points):
        def __getitem__(self, index: int) -> Any:
            raise OSError("locked")

    with pytest.raises(RecipeError, match=r"first row of Locked cannot be read \(OSError: locked\)"):
        load_data(Locked())
    with pytest.raises(RecipeError, match="has no rows"):
        load_data(Points(0))
    with pytest.raises(RecipeError, match="have no 'idd', given as id"):
        load_data(Points(), id="idd")


def hugging_face(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hugging_face_set_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Arrow(Points):
        features = {"label": SimpleNamespace(names=["no", "yes"]), "x": SimpleNamespace()}

    asked = []

    def load(name: str, **args: Any) -> dict[str, Arrow]:
        asked.append((name, args))
        return {"train": Arrow(), "validation": Arrow(), "test": Arrow()}

    hugging_face(monkeypatch, load)
    data = load_data("someone/points", args={"revision": "1"})
    assert asked == [("someone/points", {"revision": "1"})]
    assert data.labels == {"label": ["no", "yes"]}
    assert [len(split) for split in data.splits.values()] == [60, 60, 60]


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise ConnectionError("offline")

    hugging_face(monkeypatch, load)
    with pytest.raises(RecipeError, match=r"the Hugging Face hub did not give it \(ConnectionError: offline\)"):
        load_data("someone/points")


def test_without_the_package_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RecipeError, match=r"data 'someone/points': .* pip install 'limbeck\[data\]'"):
        load_data("someone/points")
