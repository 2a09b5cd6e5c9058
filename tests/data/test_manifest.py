"""CSV, JSONL and Parquet manifests give the same rows; what is broken in them is told."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limbeck.data import load_data
from limbeck.data.column import CellError
from limbeck.data.manifest import ArrowRows, JsonLines, manifest
from limbeck.errors import RecipeError

ROWS = [{"x": [float(row), 1.0], "text": f"row, {row}\nmore", "label": "ab"[row % 2]} for row in range(40)]


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_three_formats_one_content(tmp_path: Path, table: Callable[..., Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "a.csv", tmp_path / "a.parquet", tmp_path / "a.jsonl.gz"]
    table(paths[1], list(ROWS[0]), [[json.dumps(row["x"]), row["text"], row["label"]] for row in ROWS])
    pq.write_table(pa.Table.from_pylist(ROWS), paths[2])
    paths[3].write_bytes(gzip.compress(paths[0].read_bytes()))
    for path in paths:
        data = load_data(path)
        assert data.labels == {"label": ["a", "b"]}
        assert {name: len(split) for name, split in data.splits.items()} == {"train": 31, "validation": 3, "test": 6}
        rows = [row for split in data.splits.values() for row in map(split.__getitem__, range(len(split)))]
        for row in rows:
            source = ROWS[int(row["id"])]
            assert torch.equal(row["x"], torch.tensor(source["x"]))
            assert row["text"] == source["text"]
            assert "ab"[int(row["label"])] == source["label"]


def test_paths_are_relative_to_the_manifest(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    data = load_data(pictures)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 18, "validation": 6, "test": 6}
    batch = data["validation"].__getitems__([5, 0])
    assert batch["id"].tolist() == [23, 18]
    assert torch.equal(batch["image"], torch.tensor([23, 18]).view(2, 1, 1, 1).expand(2, 1, 2, 2) / 255)
    assert batch["label"].tolist() == [2, 0]
    assert data["test"].ids == [str(row) for row in range(24, 30)]
    assert data.columns["image"] == "image, float32 [1, 2, 2]"


def test_an_id_column_makes_the_split_stable_when_rows_move(tmp_path: Path) -> None:
    rows = [{"id": f"s{row}", "x": [float(row)], "label": row % 2} for row in range(60)]
    first = load_data(jsonl(tmp_path / "a.jsonl", rows))
    again = load_data(jsonl(tmp_path / "b.jsonl", [*rows[::-1], {"id": "new", "x": [0.0], "label": 0}]))
    for name, split in first.splits.items():
        assert set(split.ids) <= set(again[name].ids)
    other = load_data(jsonl(tmp_path / "c.jsonl", [{"key": row.pop("id"), **row} for row in rows]), id="key")
    assert other["test"].ids == first["test"].ids
    assert first["test"].ids != load_data(tmp_path / "a.jsonl", seed=1)["test"].ids


def test_a_split_column_of_another_name(tmp_path: Path) -> None:
    rows = [{"part": part, "x": [1.0]} for part in ("train", "valid", "test")]
    data = load_data(jsonl(tmp_path / "a.jsonl", rows), split="part")
    assert [len(split) for split in data.splits.values()] == [1, 1, 1]
    with pytest.raises(RecipeError, match=r"has no column 'prat', given as split\. Did you mean 'part'"):
        load_data(tmp_path / "a.jsonl", split="prat")
    with pytest.raises(RecipeError, match="has no column 'key', given as id"):
        load_data(tmp_path / "a.jsonl", id="key")


def test_broken_lines_are_all_told_at_once_and_can_be_skipped(tmp_path: Path) -> None:
    good = [json.dumps({"x": row, "label": row % 2}) for row in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*good, "{", "[1]"]))
    with pytest.raises(RecipeError) as caught:
        load_data(path)
    assert "row 60 is not JSON (line 61" in str(caught.value)
    assert "row 61 is no JSON object (line 62): [1]" in str(caught.value)
    assert sum(map(len, load_data(path, skip_bad=True).splits.values())) == 60

    (tmp_path / "a.csv").write_text("x,label\n" + "".join(f"{row},{row % 2}\n" for row in range(60)) + "1\n1,2,3\n")
    with pytest.raises(RecipeError) as caught:
        load_data(tmp_path / "a.csv")
    assert "row 60 has 1 cells (line 62), the header has 2" in str(caught.value)
    assert "row 61 has 3 cells" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"", "must name each column once|has no rows"),
        ("a.csv", b"x,x\n1,2\n", "must name each column once; it is: x,x"),
        ("a.csv", b"x\n", "has no rows"),
        ("a.csv", b'x,y\n"1"2,3\n', "not good CSV at line 2"),
        ("a.jsonl", b"\xff\xfe{", "cannot be read as UTF-8"),
        ("a.jsonl.gz", b"no gzip", "cannot be read as UTF-8"),
        ("a.parquet", b"no parquet", "cannot be read as Parquet"),
    ],
)
def test_files_that_are_no_manifests(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=why):
        manifest(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RecipeError, match=r"pip install 'limbeck\[data\]'"):
        manifest(tmp_path / "a.parquet")


def test_a_byte_order_mark_and_tabs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfx\tlabel\r\n1\ta\r\n\r\n2\tb\r\n")
    found = manifest(tmp_path / "a.tsv")
    assert found.names == ["x", "label"]
    assert [found.cells(row)[0] for row in range(len(found))] == [{"x": "1", "label": "a"}, {"x": "2", "label": "b"}]


def test_long_json_lines_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, and the same complaints, as when all are read at once; also in another process."""
    lines = ['{"a": 1, "b": "é"}', "", "  ", '{"a": 2}', "[3]", "{", '{"a": "last"}']
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    short = manifest(path)
    monkeypatch.setattr("limbeck.data.manifest.LONG", 0)
    long = manifest(path)
    rows = long.parts[0].rows
    assert isinstance(rows.lines, JsonLines)
    again = pickle.loads(pickle.dumps(rows))
    assert (len(rows), long.names) == (len(short.parts[0].rows), short.names)
    for number, (one, other) in enumerate(zip(list(rows.lines), short.parts[0].rows.lines, strict=True)):
        if isinstance(other, CellError):
            assert str(one).split("(")[0] == str(other).split("(")[0]
            with pytest.raises(CellError):
                rows[number]
        else:
            assert one == other == again[number]
    assert "byte 36" in str(rows.lines[2])


def test_long_json_lines_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.data.manifest.LONG", 0)
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    rows = manifest(tmp_path / "rows.jsonl").parts[0].rows
    assert rows[0] == {"a": 1}
    with pytest.raises(CellError, match="is no UTF-8"):
        rows[1]


def test_long_tables_stay_with_arrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    said = [[{"role": "user", "content": str(n)}] for n in range(7)]
    parquet.write_table(
        arrow.table({"messages": said, "n": list(range(7))}), tmp_path / "rows.parquet", row_group_size=3
    )
    short = manifest(tmp_path / "rows.parquet").parts[0].rows
    monkeypatch.setattr("limbeck.data.manifest.LONG", 0)
    rows = manifest(tmp_path / "rows.parquet").parts[0].rows
    assert isinstance(rows.lines, ArrowRows)
    assert list(rows.lines) == list(short.lines)
    with pytest.raises(IndexError):
        rows[7]
