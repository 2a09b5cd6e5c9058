"""One reading of all rows: decodes everything once, keeps what fits in memory, notes what is wrong."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.data.collate import form
from limbeck.data.column import Column, reason
from limbeck.data.columns import Label
from limbeck.data.splits import standard
from limbeck.data.table import Table

Progress = Callable[[int, int], None]  # rows done, rows in all
FIRST = 64  # rows from which the size of the rest is estimated


@dataclass(frozen=True)
class Problem:
    """Something wrong: in one row, or (row None) in the data as a whole. A soft one need not stop who says skip_bad."""

    row: int | None
    text: str
    soft: bool = False


@dataclass
class Row:
    """What one row holds. `values` has the class name (or None) for a label column; `said` is "" without a split."""

    id: str
    said: str
    values: dict[str, Any]
    digest: bytes
    problems: list[Problem]


@dataclass
class Scan:
    """What all rows hold, by row number.

    Attributes:
        ids, said: name and split of each row.
        forms: type and shape of each value, by column; "" where it could not be read.
        values: the values of label columns (class names, None where there is none) and of those that fit in memory.
        digests: a hash of each row's values.
        problems: what is wrong with single rows.
    """

    ids: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    forms: dict[str, list[str]] = field(default_factory=dict)
    values: dict[str, list[Any]] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def scan(table: Table, columns: Mapping[str, Column], budget: int, progress: Progress | None = None) -> Scan:
    """Read every row once.

    Columns are kept in memory from the smallest on while their estimated bytes (from the first rows) fit `budget`. Of
    a live table only labels are kept, since its other values may differ at the next reading.
    """
    found = Scan(forms={name: [] for name in columns}, values={name: [] for name in columns})
    for number, row in enumerate(_read_all(table, columns)):
        found.ids.append(row.id)
        found.said.append(row.said)
        found.digests.append(row.digest)
        found.problems.extend(row.problems)
        for name, forms in found.forms.items():
            forms.append(form(row.values[name]) if name in row.values else "")
        for name, values in found.values.items():
            values.append(row.values.get(name))
        if number + 1 == min(FIRST, len(table)):
            kept = _fitting(found.values, columns, budget * (number + 1) / len(table), table.live)
            found.values = {name: found.values[name] for name in kept}
        if progress is not None:
            progress(number + 1, len(table))
    return found


def _read_all(table: Table, columns: Mapping[str, Column]) -> Iterator[Row]:
    """All rows in order; by threads, a block at a time, unless they come from a Dataset that may not stand threads."""
    if table.live:
        yield from (read_row(table, columns, row) for row in range(len(table)))
        return
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(table), 32 * workers):
            block = range(start, min(start + 32 * workers, len(table)))
            yield from pool.map(lambda row: read_row(table, columns, row), block)


def read_row(table: Table, columns: Mapping[str, Column], row: int) -> Row:
    """Decode one row; whatever a cell or the user's Dataset raises becomes a problem of this row."""
    part, own = table.place(row)
    id = f"{part.prefix}{own}"
    try:
        cells = part.rows[own]
    except Exception as error:
        return Row(id, part.said, {}, b"", [Problem(row, f"row {id} {reason(error)}")])
    wrong = []
    if part.id is not None and Label.missing(cells.get(part.id)):
        wrong.append(Problem(row, f"row {id}: {part.id} is empty"))
    elif part.id is not None:
        id = f"{part.prefix}{Label.key(cells[part.id])}"
    said = part.said
    if part.split is not None:
        said = standard(cells.get(part.split) or "")
        wrong.extend([] if said else [Problem(row, f"row {id}: {part.split} is empty")])
    values = {}
    for name, column in columns.items():
        try:
            if isinstance(column, Label) and name in cells:
                values[name] = None if column.missing(cells[name]) else column.key(cells[name])
            else:
                values[name] = column.read(cells, name, part.folder)
        except Exception as error:
            wrong.append(Problem(row, f"row {id}: {name} {reason(error)}"))
    return Row(id, said, values, _digest(values, columns, table.live), wrong)


def _digest(values: Mapping[str, Any], columns: Mapping[str, Column], live: bool) -> bytes:
    digest = hashlib.sha256()
    for name, value in values.items():
        if live and not isinstance(columns[name], Label):
            continue
        digest.update(f"{name}/{form(value)}/".encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.digest()


def _fitting(values: Mapping[str, list[Any]], columns: Mapping[str, Column], budget: float, live: bool) -> list[str]:
    sizes = {name: sum(map(_bytes, column)) for name, column in values.items()}
    kept = [name for name in sizes if isinstance(columns[name], Label)]
    used = 0
    for name in sorted(sizes.keys() - kept, key=lambda name: (sizes[name], name)):
        used += sizes[name]
        if used <= budget and not live:
            kept.append(name)
    return kept


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 50 + len(repr(value))
