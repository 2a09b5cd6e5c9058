"""Everything wrong is in one error, and `skip_bad` leaves out exactly the bad rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data import Label, load_data
from limbeck.errors import RecipeError


def rows(count: int = 60) -> list[dict[str, Any]]:
    """Rows without a fault: two classes, in every split."""
    splits = ["train", "validation", "test"]
    return [
        {"id": f"r{row}", "x": [row, 1], "label": "ab"[row // 3 % 2], "split": splits[row % 3]} for row in range(count)
    ]


def saved(folder: Path, content: list[dict[str, Any]]) -> Path:
    path = folder / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, content)))
    return path


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load_data(source, **options)
    return str(caught.value)


def test_rows_without_a_fault_pass(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, rows()))
    assert [len(split) for split in data.splits.values()] == [20, 20, 20]
    assert not any("left out" in notice for notice in data.notices)


def test_every_kind_of_bad_row_is_in_the_one_error(pictures: Path, table: Callable[..., Path]) -> None:
    root = pictures.parent
    (root / "img" / "4.png").unlink()
    (root / "img" / "5.png").write_bytes((root / "img" / "5.png").read_bytes()[:-30])
    (root / "img" / "6.png").write_bytes(b"no picture")
    np.save(root / "img" / "7.png", np.zeros(3))
    header, *lines = pictures.read_text().splitlines()
    lines[8] = "img/8.png,aep,train"
    lines[9] = "img/9.png,3,train"
    lines[10] = "img/10.png,,train"
    lines[11] = "img/11.png,cat,"
    lines[12] = ",ape,train"
    lines[13] = "img/13.png,bee"
    pictures.write_text("\n".join([header, *lines]))
    text = refused(pictures, columns={"label": Label(names=["ape", "bee", "cat"])})
    assert text.startswith(f"The data of {pictures} have 9 problems; nothing was started:")
    for told in [
        f"row 4: image 4.png is not there ({root / 'img'})",
        "row 5: image cannot be read (OSError: ",
        "row 6: image cannot be read (UnidentifiedImageError: ",
        "row 8: label is 'aep', an unknown class. Did you mean 'ape'?",
        "row 9: label is 3, out of range: there are 3 classes, 0 to 2",
        "row 10: label is empty",
        "row 11: split is empty",
        "row 12: image is empty",
        "row 13 has 2 cells (line 15), the header has 3",
        "Mend them, or go on without the 9 bad of 30 rows: skip_bad=true.",
    ]:
        assert told in text
    data = load_data(pictures, columns={"label": Label(names=["ape", "bee", "cat"])}, skip_bad=True)
    assert sum(map(len, data.splits.values())) == 21
    assert data["train"].__getitems__(range(9))["id"].tolist() == [0, 1, 2, 3, 7, 14, 15, 16, 17]
    assert any(notice.startswith("9 of 30 rows are bad and were left out: row 4: image") for notice in data.notices)


def test_the_first_20_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    content = rows()
    for row in content[:25]:
        row["x"] = "gone.npy"
    text = refused(saved(tmp_path, content), columns={"x": "array"})
    assert "have 25 problems" in text
    assert text.count("\n  row ") == 20
    assert "\n  and 5 more" in text


def test_double_ids(tmp_path: Path) -> None:
    content = rows()
    content[7]["id"] = "r3"
    assert "row r3: this id belongs to row number 3 already (this is 7)" in refused(saved(tmp_path, content))
    data = load_data(tmp_path / "a.jsonl", skip_bad=True)
    kept = [id for split in data.splits.values() for id in split.ids]
    assert sorted(kept) == sorted({row["id"] for row in content})


def test_a_few_odd_shapes_are_bad_rows(tmp_path: Path) -> None:
    content = rows()
    content[2]["x"], content[5]["x"] = [1], [1.5, 2]
    text = refused(saved(tmp_path, content))
    assert "row r2: x is int64 [1], but 58 of 60 rows have int64 [2]" in text
    assert "row r5: x is float32 [2], but 58 of 60 rows have int64 [2]" in text
    assert sum(map(len, load_data(tmp_path / "a.jsonl", skip_bad=True).splits.values())) == 58


def test_shapes_without_a_usual_one_are_one_problem_with_advice(pictures: Path, picture: Callable[..., Path]) -> None:
    for row in range(30):
        picture(pictures.parent / "img" / f"{row}.png", 0, (row + 1, 2))
    text = refused(pictures)
    assert "have 1 problem;" in text
    assert "image has 30 different shapes in 30 rows" in text
    assert "size (and channels) in its column makes all alike" in text
    assert "skip_bad" not in text
    assert "different shapes" in refused(pictures, skip_bad=True)
    assert load_data(pictures, columns={"image": {"size": 4}})["train"][0]["image"].shape == (1, 4, 4)


def test_missing_columns_of_single_rows(tmp_path: Path) -> None:
    content = rows()
    del content[4]["x"]
    content[5]["id"] = ""
    text = refused(saved(tmp_path, content))
    assert "row r4: x is missing in this row" in text
    assert "row 5: id is empty" in text


def test_empty_splits_cannot_be_skipped(tmp_path: Path) -> None:
    content = [row for row in rows() if row["split"] != "test"][:2]
    text = refused(saved(tmp_path, content))
    assert "the split 'test' has no row; rows are " in text
    assert "the split 'test' has no row" in refused(tmp_path / "a.jsonl", skip_bad=True)
    for row in content:
        row["split"] = "trian"
    assert "the split 'train' has no row; rows are 2 in 'trian'" in refused(saved(tmp_path, content))


def test_a_class_that_a_named_split_lacks_is_a_problem(tmp_path: Path) -> None:
    content = rows()
    for row in content:
        if row["split"] == "test":
            row["label"] = "a"
    text = refused(saved(tmp_path, content))
    assert "the split 'test' has no row of 1 of the 2 classes of label: b" in text
    assert text.endswith("Mend it, or go on nevertheless: skip_bad=true.")
    data = load_data(tmp_path / "a.jsonl", skip_bad=True)
    assert len(data["test"]) == 20
    assert "The split 'test' has no row of 1 of the 2 classes of label: b." in data.notices


def test_a_class_that_a_hashed_split_lacks_is_a_notice_but_not_in_train(tmp_path: Path) -> None:
    content = [{"x": [row], "label": "a" if row else "b"} for row in range(60)]
    data = load_data(saved(tmp_path, content))
    lacking = [notice for notice in data.notices if "no row of 1 of the 2 classes of label: b" in notice]
    assert len(lacking) == 2
    content = [{"x": [row], "label": "b" if row == 3 else "a"} for row in range(60)]  # row 3 falls into the test split
    assert "the split 'train' has no row of 1 of the 2 classes of label: b" in refused(saved(tmp_path, content))


def test_a_gap_in_numbered_classes_is_a_problem_and_a_longer_list_of_names_is_not(tmp_path: Path) -> None:
    content = rows()
    for row in content:
        row["label"] = 2 * "ab".index(row["label"])
    assert "the data have no row of 1 of the 3 classes of label: 1" in refused(saved(tmp_path, content))
    data = load_data(tmp_path / "a.jsonl", columns={"label": {"use": "label", "names": ["x", "y", "z"]}})
    assert data.labels == {"label": ["x", "y", "z"]}
    assert "The data have no row of 1 of the 3 classes of label: y." in data.notices


def test_other_label_columns_may_be_held_out(tmp_path: Path) -> None:
    content = [{**row, "speaker": row["split"]} for row in rows()]
    data = load_data(saved(tmp_path, content), columns={"speaker": "label"})
    assert data.labels["speaker"] == ["test", "train", "validation"]
    assert any("classes of speaker" in notice for notice in data.notices)


def test_numbers_and_arrays_must_be_finite(tmp_path: Path) -> None:
    content = [{**row, "age": row_number} for row_number, row in enumerate(rows())]
    content[3]["age"], content[4]["x"] = "old", [float("nan"), 1.0]
    text = refused(saved(tmp_path, content), columns={"age": "number"})
    assert "row r3: age is 'old', not a number" in text
    assert "row r4: x holds 1 values that are nan or infinite" in text


def test_what_fits_is_kept_and_the_rest_decoded_anew_with_the_same_values(pictures: Path) -> None:
    kept = load_data(pictures)
    lazy = load_data(pictures, budget=0)
    assert lazy.fingerprint == kept.fingerprint
    assert "Decoded anew for every batch, as it does not fit into 0 MiB: image." in lazy.notices
    for name, split in kept.splits.items():
        one, other = split.__getitems__(range(len(split))), lazy[name].__getitems__(range(len(split)))
        assert list(one) == list(other) == ["image", "label", "id"]
        for column in one:
            assert torch.equal(one[column], other[column])
    (pictures.parent / "img" / "0.png").unlink()
    assert kept["train"][0]["image"].max() == 0
    with pytest.raises(RecipeError, match=r"Row 0: image 0.png is not there .*could be read when the data were opened"):
        lazy["train"][0]


def test_columns_are_kept_from_the_smallest_on(pictures: Path) -> None:
    lines = pictures.read_text().splitlines()
    pictures.write_text("\n".join([lines[0] + ",x", *(line + ",0.5" for line in lines[1:])]))
    data = load_data(pictures, budget=30 * 4)
    assert any(notice.endswith("0 MiB: image.") for notice in data.notices)
    assert data["train"][0]["x"] == 0.5


def test_the_fingerprint_changes_with_a_pixel_a_label_a_split_and_an_option(
    pictures: Path, picture: Callable[..., Path]
) -> None:
    seen = {load_data(pictures).fingerprint, load_data(pictures, columns={"image": {"size": 3}}).fingerprint}
    text = pictures.read_text()
    for old, new in [("img/0.png,ape", "img/0.png,bee"), ("img/0.png,ape,train", "img/0.png,ape,val")]:
        pictures.write_text(text.replace(old, new))
        seen.add(load_data(pictures).fingerprint)
    pictures.write_text(text)
    picture(pictures.parent / "img" / "0.png", 1)
    seen.add(load_data(pictures).fingerprint)
    assert len(seen) == 5
    picture(pictures.parent / "img" / "0.png", 0)
    assert load_data(pictures).fingerprint in seen


def test_progress_is_told_row_by_row(pictures: Path) -> None:
    told: list[tuple[int, int]] = []
    load_data(pictures, progress=lambda done, total: told.append((done, total)))
    assert told == [(row, 30) for row in range(1, 31)]
