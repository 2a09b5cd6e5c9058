"""From a table to checked, decoded data."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from limbeck.data.check import refuse, row_problems, split_problems
from limbeck.data.collate import listed
from limbeck.data.column import CellError, Column
from limbeck.data.columns import Label
from limbeck.data.guess import resolve
from limbeck.data.rows import RowSplit, Store
from limbeck.data.scan import Progress, Scan, scan
from limbeck.data.splits import assign, rows_of
from limbeck.data.table import Table
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError


def build(
    table: Table,
    columns: Mapping[str, Any] | None = None,
    *,
    skip_bad: bool = False,
    seed: int = 0,
    budget: int = 2**30,
    progress: Progress | None = None,
    only: str | None = None,
) -> Data:
    """Decode every row of the table once, check all, and give the splits.

    Args:
        columns: how to read them; what is not said is guessed.
        skip_bad: leave bad rows out, and go on where a split lacks a class; both are told in `Data.notices`.
        seed: of the hash that makes splits which the data do not name.
        budget: bytes of decoded values kept in memory; columns beyond it are decoded again when asked for.
        progress: called as `progress(rows done, rows in all)` while reading.
        only: the one split that is wanted; rows of which nothing is said belong to it.

    Raises:
        RecipeError: one sentence per thing that is wrong, the first 20 of them, and their number.
    """
    kinds, notices = resolve(table, columns)
    found = scan(table, kinds, budget, progress)
    given = {name for name, kind in kinds.items() if isinstance(kind, Label) and kind.names and name not in table.known}
    kinds = {name: kind.fitted(found.values[name]) if isinstance(kind, Label) else kind for name, kind in kinds.items()}
    problems = row_problems(found, kinds)
    bad = {problem.row for problem in problems if problem.row is not None and skip_bad}
    good = [row for row in range(len(table)) if row not in bad]
    words, split_notices = _splits(found, good, seed, only, table.source)
    splits = rows_of(words) if only is None else {only: [row for row, word in enumerate(words) if word == only]}
    numbers = {
        name: _numbers(kind, found.values[name], good) for name, kind in kinds.items() if isinstance(kind, Label)
    }
    labels = {name: list(kind.names or ()) for name, kind in kinds.items() if isinstance(kind, Label)}
    named = set(filter(None, found.said))
    whole, class_notices = split_problems(splits, numbers, labels, made=splits.keys() - named, given=given)
    notices += [*table.notices, *split_notices, *class_notices]
    refuse(table.source, [*whole, *problems], len(table), skip_bad)
    if skip_bad and problems:
        notices.append(
            f"{len(bad)} of {len(table)} rows are bad and were left out: {listed([p.text for p in problems])}."
        )
    notices += [f"{problem.text[0].upper()}{problem.text[1:]}." for problem in whole]
    store = _store(table, kinds, found, good, numbers)
    read = [name for name in kinds if name not in store.kept]
    if read and not table.live:
        notices.append(
            f"Decoded anew for every batch, as it does not fit into {budget >> 20:,} MiB: {', '.join(read)}."
        )
    forms = {name: Counter(found.forms[name][row] for row in good).most_common(1)[0][0] for name in kinds}
    forms |= dict.fromkeys(labels, "int64 []")
    said = {name: f"{kind.describe()}, {forms[name]}" for name, kind in kinds.items()}
    digest = hashlib.sha256(repr((labels, said)).encode())
    for word, row in zip(words, good, strict=True):
        digest.update(repr((found.ids[row], word)).encode() + found.digests[row])
    return Data(
        splits={name: RowSplit(store, torch.tensor(rows)) for name, rows in splits.items()},
        columns=said,
        labels=labels,
        fingerprint=digest.hexdigest(),
        source=table.source,
        notices=notices,
    )


def _splits(found: Scan, good: list[int], seed: int, only: str | None, source: str) -> tuple[list[str], list[str]]:
    said = [found.said[row] for row in good]
    if only is None:
        return assign([found.ids[row] for row in good], said, seed)
    words = [word or only for word in said]
    if only not in words:
        raise RecipeError(f"{source} has no split '{only}'. There is: {', '.join(sorted(set(words)))}.")
    return words, []


def _store(
    table: Table, kinds: Mapping[str, Column], found: Scan, good: list[int], numbers: Mapping[str, list[int]]
) -> Store:
    """The good rows; takes the values out of `found` one column at a time, so that no two copies of all are held."""
    kept: dict[str, Tensor | list[Any]] = {name: torch.tensor(number) for name, number in numbers.items()}
    for name in list(found.values):
        values = found.values.pop(name)
        if name not in kept:
            chosen = [values[row] for row in good]
            kept[name] = torch.stack(chosen) if isinstance(chosen[0], Tensor) else chosen
    return Store(table, kinds, torch.tensor(good), [found.ids[row] for row in good], kept)


def _numbers(kind: Label, keys: list[Any], rows: list[int]) -> list[int]:
    """Class numbers of rows; -1 where there is none, which the check of the rows has told."""
    known: dict[Any, int] = {}
    for key in set(keys):
        with suppress(CellError):
            known[key] = kind.index(key)
    return [known.get(keys[row], -1) for row in rows]
