"""Rows before decoding: what every kind of source (manifest, folder, Dataset) is turned into."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from limbeck.data.column import Column


class Rows(Protocol):
    """Anything that gives rows by number as mappings from column name to cell."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]: ...


@dataclass
class Part:
    """Rows from one place.

    Attributes:
        rows: the cells.
        folder: what paths in the cells are relative to.
        id: the column with the rows' ids; None counts them from 0.
        split: the column that says the split, if there is one.
        said: the split of all rows, where the place itself says it.
        prefix: what comes before every id, so that those of several places differ.
        own_ids: the ids are given by the data and mean a sample wherever it is found; else a number or path in here.
    """

    rows: Rows
    folder: Path = field(default_factory=Path)
    id: str | None = None
    split: str | None = None
    said: str = ""
    prefix: str = ""
    own_ids: bool = False


@dataclass
class Table:
    """All rows, numbered through all parts in order.

    Attributes:
        source: a name for people.
        parts: where the rows are.
        names: the columns, in order, without those of id and split.
        known: columns whose kind the source itself tells (class folders, features of a Hugging Face data set).
        notices: sentences a person should read.
        live: rows come from a user's Dataset, which may give other values at each reading (augmentation).
    """

    source: str
    parts: Sequence[Part]
    names: Sequence[str]
    known: dict[str, Column] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    live: bool = False

    def __post_init__(self) -> None:
        self._ends = list(accumulate(len(part.rows) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, row: int) -> tuple[Part, int]:
        """The part of a row and its number there."""
        which = bisect_right(self._ends, row)
        return self.parts[which], row - (self._ends[which - 1] if which else 0)

    def cells(self, row: int) -> tuple[Mapping[str, Any], Path]:
        """The cells of a row, and the folder that paths in them are relative to."""
        part, own = self.place(row)
        return part.rows[own], part.folder

    def first_rows(self, most: int) -> list[tuple[Mapping[str, Any], Path]]:
        """Some rows from the beginning of every part; one that cannot be read is left to the check of all rows."""
        rows = []
        for part in self.parts:
            for own in range(min(most, len(part.rows))):
                with suppress(Exception):
                    rows.append((part.rows[own], part.folder))
        return rows
