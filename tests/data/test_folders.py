"""Folders of class folders, of splits, and of files that belong together by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from limbeck.data import Image, load_data
from limbeck.errors import RecipeError


def classes(root: Path, picture: Callable[..., Path], names: tuple[str, ...], each: int) -> None:
    for number, name in enumerate(names):
        for row in range(each):
            picture(root / name / f"{row}.png", 10 * number + row)


def test_class_folders_give_labels_by_name_and_splits_by_hash(tmp_path: Path, picture: Callable[..., Path]) -> None:
    classes(tmp_path, picture, ("dog", "cat"), 40)
    (tmp_path / "cat" / "notes.md").write_text("x")
    (tmp_path / ".hidden").mkdir()
    data = load_data(tmp_path)
    assert data.labels == {"label": ["cat", "dog"]}
    assert sum(map(len, data.splits.values())) == 80
    assert any("left out: 1 .md" in notice for notice in data.notices)
    for split in data.splits.values():
        for row in range(len(split)):
            name, file = split.ids[row].split("/")
            assert data.labels["label"][int(split[row]["label"])] == name
            value = int(file.removesuffix(".png")) + {"dog": 0, "cat": 10}[name]
            assert torch.equal(split[row]["image"], torch.full((1, 2, 2), value / 255))


def test_numbered_class_folders_are_in_the_order_of_their_numbers(tmp_path: Path, picture: Callable[..., Path]) -> None:
    classes(tmp_path, picture, ("10", "9", "2"), 60)
    assert load_data(tmp_path).labels == {"label": ["2", "9", "10"]}


def test_split_folders(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for split, each in [("train", 5), ("val", 2), ("test", 3)]:
        classes(tmp_path / split, picture, ("a", "b"), each)
    data = load_data(tmp_path, columns={"photo": Image(size=4)})
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "validation": 4, "test": 6}
    assert data["validation"].ids == ["val/a/0.png", "val/a/1.png", "val/b/0.png", "val/b/1.png"]
    assert data["train"].__getitems__([0, 1])["photo"].shape == (2, 1, 4, 4)


def test_an_empty_class_folder_is_a_class_without_rows(tmp_path: Path, picture: Callable[..., Path]) -> None:
    classes(tmp_path, picture, ("a", "b"), 60)
    (tmp_path / "c").mkdir()
    with pytest.raises(RecipeError, match="no row of 1 of the 3 classes of label: c"):
        load_data(tmp_path)


def test_files_of_several_kinds_with_one_name_are_one_row(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for row in range(40):
        picture(tmp_path / f"{row}.png", row)
        (tmp_path / f"{row}.txt").write_text(f"picture {row}")
        soundfile.write(tmp_path / f"{row}.wav", np.full(8, row / 100), 8000, subtype="FLOAT")
    data = load_data(tmp_path, columns={"prompt": {"use": "text"}, "image": {"size": 2}})
    row = data["train"][3]
    number = int(data["train"].ids[3])
    assert row["prompt"] == f"picture {number}"
    assert torch.equal(row["image"], torch.full((1, 2, 2), number / 255))
    torch.testing.assert_close(row["audio"], torch.full((8,), number / 100))
    assert data.labels == {}


def test_a_file_that_lacks_its_partner_is_told(tmp_path: Path, picture: Callable[..., Path]) -> None:
    for row in range(60):
        picture(tmp_path / f"{row}.png", row)
        (tmp_path / f"{row}.txt").write_text("x")
    (tmp_path / "7.txt").unlink()
    with pytest.raises(RecipeError, match="row 7: text is missing in this row"):
        load_data(tmp_path)


def test_two_files_for_one_cell(tmp_path: Path, picture: Callable[..., Path]) -> None:
    picture(tmp_path / "1.png")
    picture(tmp_path / "1.bmp")
    (tmp_path / "1.txt").write_text("x")
    with pytest.raises(RecipeError, match="Two files are the image of one row"):
        load_data(tmp_path)


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"holds no file of a kind that can be read. Suffixes: \.png"):
        load_data(tmp_path)


def test_a_manifest_in_a_folder_is_read_and_manifests_named_by_split(pictures: Path) -> None:
    root = pictures.parent
    assert len(load_data(root)["train"]) == 18
    header, *rows = pictures.read_text().splitlines()
    pictures.unlink()
    for name, chosen in [("train", rows[:12]), ("dev", rows[12:18]), ("test", rows[18:])]:
        (root / f"{name}.csv").write_text("\n".join([header, *chosen]))
    data = load_data(root)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "validation": 6, "test": 12}
    assert data["validation"].ids[0] == "validation/0"
    everything = torch.cat([split.__getitems__(range(len(split)))["id"] for split in data.splits.values()])
    assert everything.tolist() == list(range(30))
    assert data.source == str(root)
    (root / "dev.csv").rename(root / "one.csv")
    (root / "test.csv").rename(root / "two.csv")
    (root / "train.csv").unlink()
    with pytest.raises(RecipeError, match=r"holds several manifests: one\.csv, two\.csv\. Name one of them"):
        load_data(root)
