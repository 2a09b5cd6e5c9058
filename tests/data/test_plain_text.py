"""Text files as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from limbeck.data.load import load_data
from limbeck.errors import RecipeError


def lines(count: int) -> str:
    return "".join(f"line {n}, é\n" for n in range(count))


def texts(data: object, split: str) -> list[str]:
    rows = data[split]  # type: ignore[index]
    return rows.__getitems__(list(range(len(rows))))["text"]


def test_one_text_is_parted_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text(lines(100), encoding="utf-8")
    data = load_data(path)
    parts = [texts(data, split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1, 1, 1]
    assert "".join(part[0] for part in parts) == lines(100)
    assert all(part[0].endswith("\n") for part in parts)
    assert [round(part[0].count("\n"), -1) for part in parts] == [80, 10, 10]
    assert data["test"].ids == ["book.txt/test"]
    assert "one text: its first 80 % train" in " ".join(data.notices)


def test_a_very_long_text_becomes_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.data.plain_text.LONG", 50)
    text = lines(100) + "x" * 120 + "\nend"
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    data = load_data(tmp_path / "book.txt")
    parts = [text for split in ("train", "validation", "test") for text in texts(data, split)]
    assert "".join(parts) == text
    assert all(len(part) <= 50 and (part.endswith("\n") or "x" * 20 in part or part == "end") for part in parts)
    assert data["train"].ids[:2] == ["book.txt/train", "book.txt/train#2"]
    assert "".join(texts(load_data(tmp_path / "book.txt", only="test"), "test")) == text


def test_a_text_for_each_split(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.txt").write_text(f"{name} text\nof {name}")
    named = load_data({name: tmp_path / f"{name}.txt" for name in ("train", "val", "test")})
    for data in (named, load_data(tmp_path)):
        assert texts(data, "train") == ["train text\nof train"]
        assert texts(data, "validation") == ["val text\nof val"]
        assert texts(data, "test") == ["test text\nof test"]


def test_a_text_that_is_one_split(tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("all of it\nis the test\n")
    data = load_data(tmp_path / "other.txt", only="test")
    assert list(data.splits) == ["test"]
    assert texts(data, "test") == ["all of it\nis the test\n"]


def test_a_folder_of_texts_has_a_row_for_each(tmp_path: Path) -> None:
    for n in range(30):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    data = load_data(tmp_path)
    assert sorted(text for split in data.splits for text in texts(data, split)) == sorted(
        f"text {n}" for n in range(30)
    )


def test_long_lines(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a single line without an end")
    with pytest.raises(RecipeError, match=r"too few lines .* Give a file for each: \{train: path"):
        load_data(tmp_path / "one.txt")


@pytest.mark.parametrize(("held", "sentence"), [(b" \n", "is empty"), (b"\xff\xfe\xfa", "cannot be read as UTF-8")])
def test_no_text(tmp_path: Path, held: bytes, sentence: str) -> None:
    (tmp_path / "bad.txt").write_bytes(held)
    with pytest.raises(RecipeError, match=sentence):
        load_data(tmp_path / "bad.txt")


def test_columns_of_language_tasks_are_text(tmp_path: Path) -> None:
    """Whatever their cells look like: numbers, lists, words that repeat, the name of a file."""
    rows = [
        {
            "prompt": f"{n}",
            "completion": ["yes", "no"][n % 2],
            "text": "[1, 2]",
            "messages": [{"role": "user", "content": "a"}],
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_data(tmp_path / "rows.jsonl")
    batch = data["train"].__getitems__([0])
    row = rows[int(data["train"].ids[0])]
    assert data.labels == {}
    assert {name: values[0] for name, values in batch.items() if name != "id"} == row


def test_messages_from_parquet_are_lists(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    said = [[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "b"}] for n in range(30)]
    parquet.write_table(arrow.table({"messages": said, "source": ["a", "b", "c"] * 10}), tmp_path / "chat.parquet")
    data = load_data(tmp_path / "chat.parquet")
    assert data.labels == {}  # where there are chats, a word that repeats is no class to be learnt
    found = [row for split in data.splits.values() for row in split.__getitems__(list(range(len(split))))["messages"]]
    assert sorted(found, key=str) == sorted(said, key=str)


def test_messages_of_a_hugging_face_data_set() -> None:
    datasets = pytest.importorskip("datasets")
    said = [[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "b"}] for n in range(30)]
    parts = {"train": said[:20], "validation": said[20:25], "test": said[25:]}
    data = load_data({name: datasets.Dataset.from_dict({"messages": part}) for name, part in parts.items()})
    for name, part in parts.items():
        assert data[name].__getitems__([3, 1])["messages"] == [part[3], part[1]]
