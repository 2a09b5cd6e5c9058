"""A manifest: a CSV, JSONL or Parquet file with a row per sample and a column per modality."""

from __future__ import annotations

import csv
import gzip
import io
import json
import mmap
from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from limbeck.data.column import CellError
from limbeck.data.table import Part, Table
from limbeck.errors import RecipeError, nearest

Line: TypeAlias = Mapping[str, Any] | CellError
LONG = 2**26  # bytes of a file, or of a table, whose rows are no longer all made Python's own
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz")


@dataclass
class Lines:
    """Rows of a file; one whose line is broken raises why when it is asked for, so that the check lists it."""

    lines: Sequence[Line]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        line = self.lines[index]
        if isinstance(line, CellError):
            raise line
        return line


def is_manifest(path: Path) -> bool:
    """Whether the file's name is that of a manifest."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """The name of a manifest without any suffix."""
    return path.name.split(".")[0]


def manifest(path: Path, *, split: str = "split", id: str | None = None) -> Table:
    """The rows of a manifest; paths in it are relative to where it lies.

    Args:
        split: the column that says the split; where there is none of the default name, a hash makes the splits.
        id: the column with stable ids; None takes a column called `id`, else rows are counted from 0.

    Raises:
        RecipeError: the file cannot be read, is empty, or lacks a column that was asked for.
    """
    rows = _read(path)
    if not len(rows):
        raise RecipeError(f"The manifest {path} has no rows.")
    names = list(dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row))
    asked = {"id": id, "split": split if split != "split" else None}
    for option, column in asked.items():
        if column is not None and column not in names:
            raise RecipeError(
                f"The manifest {path} has no column '{column}', given as {option}. {nearest(column, names)}"
            )
    id = id or ("id" if "id" in names else None)
    held = split if split in names else None
    columns = [name for name in names if name not in (id, held)]
    return Table(str(path), [Part(Lines(rows), path.parent, id, held, own_ids=id is not None)], columns)


class JsonLines(Sequence[Line]):
    """The rows of a JSON lines file that is too long to be held: each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        starts = array("q")
        place = 3 if self._bytes[:3] == BOM_UTF8 else 0
        while place < len(self._bytes):
            end = self._bytes.find(b"\n", place)
            end = len(self._bytes) if end < 0 else end
            if self._bytes[place:end].strip():
                starts.append(place)
            place = end + 1
        self._starts = starts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        start = self._starts[index]
        end = self._bytes.find(b"\n", start)
        try:
            line = self._bytes[start : len(self._bytes) if end < 0 else end].decode()
        except UnicodeDecodeError as error:
            return CellError(f"is no UTF-8 ({error})")
        return _json(line, f"byte {start:,}")

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonLines, (self.path,)


class ArrowRows(Sequence[Line]):
    """The rows of a table that Arrow holds; as Python's own objects they would take many times the memory."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._table.slice(index, 1).to_pylist()[0]


def _read(path: Path) -> Sequence[Line]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".parquet"):
        return _parquet(path)
    if path.name.lower().endswith(".jsonl") and path.is_file() and path.stat().st_size > LONG:
        return JsonLines(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecipeError(f"The manifest {path} cannot be read as UTF-8 text: {error}.") from error
    return list(_jsonl(text) if name.endswith(".jsonl") else _csv(path, text, "\t" if name.endswith(".tsv") else ","))


def _csv(path: Path, text: str, comma: str) -> Iterator[Line]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if len(set(header)) < len(header) or "" in header:
            raise RecipeError(f"The first line of {path} must name each column once; it is: {comma.join(header)}")
        for row in reader:
            if row and len(row) != len(header):
                yield CellError(f"has {len(row)} cells (line {reader.line_num}), the header has {len(header)}")
            elif row:
                yield dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise RecipeError(f"The manifest {path} is not good CSV at line {reader.line_num}: {error}.") from error


def _jsonl(text: str) -> Iterator[Line]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _json(line, f"line {number}")


def _json(line: str, where: str) -> Line:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return CellError(f"is not JSON ({where}, column {error.colno}: {error.msg})")
    return row if isinstance(row, dict) else CellError(f"is no JSON object ({where}): {line[:40]}")


def _parquet(path: Path) -> Sequence[Line]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ModuleNotFoundError as error:
        raise RecipeError(f"{path} is a Parquet file; to read it: pip install 'limbeck[data]'") from error
    try:
        table = read_table(path)
        return ArrowRows(table.combine_chunks()) if table.nbytes > LONG else table.to_pylist()
    except (ArrowException, OSError) as error:
        raise RecipeError(f"The manifest {path} cannot be read as Parquet: {error}.") from error
