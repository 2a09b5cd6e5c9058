"""Rows of tokens as batches of tensors: padded on the right, targets shifted, documents of packed rows kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.language.store import Store

IGNORED = -100


@dataclass(frozen=True)
class Side:
    """One side's arrays in the store: the student's have no prefix, a teacher's with another tokenizer `teacher_`."""

    prefix: str
    pad: int


class TokenSplit(Dataset):
    """Rows of a token store as a `Split`.

    `split.__getitems__([i, j])` gives `input_ids`, `attention_mask`, `target` (int64 `[rows, longest]`), `answer` (bool),
    `answer_bytes` and `id` (int64 `[rows]`); packed, also `position_ids` and `segment`; of a teacher with another
    tokenizer the same with `teacher_` before it, and `group` / `teacher_group`. `target[t]` is the token that position
    t has to predict, -100 where nothing counts.

    Args:
        store: the documents: `ids`, `counted`, `bytes` (one number), and what a teacher has.
        rows: for each row, the documents in it; `flat[ends[i]:ends[i + 1]]`.
        ids: a name for each row, for people.
        numbers: the row numbers, unique over the whole data set.
        sides: the student's and perhaps the teacher's.
        packed: rows hold several documents.
    """

    def __init__(
        self,
        store: Store,
        rows: tuple[np.ndarray, np.ndarray],
        ids: Sequence[str],
        numbers: np.ndarray,
        sides: Sequence[Side],
        packed: bool,
    ) -> None:
        self.store, self.rows, self.sides, self.packed = store, rows, list(sides), packed
        self.ids: list[str] = list(ids)
        self.numbers = torch.from_numpy(np.asarray(numbers, np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        rows = [self.documents(row) for row in index.tolist()]
        batch: dict[str, Tensor] = {}
        for side in self.sides:
            batch |= self._columns(side, rows)
        return {**batch, "id": self.numbers[index]}

    def documents(self, row: int) -> list[int]:
        """The numbers of the store's documents in a row."""
        flat, ends = self.rows
        row %= len(self)
        return flat[ends[row] : ends[row + 1]].tolist()

    def _columns(self, side: Side, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        p = side.prefix
        lengths = [[len(self.store[f"{p}ids", one]) for one in row] for row in rows]
        shape = (len(rows), max(1, *map(sum, lengths)))
        ids, target = np.full(shape, side.pad), np.full(shape, IGNORED)
        place, segment = np.zeros(shape, np.int64), np.full(shape, -1)
        group = np.full(shape, -1) if f"{p}group" in self.store else None
        for r, row in enumerate(rows):
            start, chunks = 0, 0
            for number, (one, length) in enumerate(zip(row, lengths[r], strict=True)):
                stop = start + length
                these = self.store[f"{p}ids", one]
                counted = self.store[f"{p}counted", one][1:].astype(bool)
                ids[r, start:stop] = these
                target[r, start : stop - 1] = np.where(counted, these[1:], IGNORED)
                place[r, start:stop] = np.arange(length)
                segment[r, start:stop] = number
                if group is not None:
                    aligned = self.store[f"{p}group", one][1:].astype(np.int64)
                    group[r, start : stop - 1] = np.where(aligned >= 0, aligned + chunks, -1)
                    chunks += int(self.store["chunks", one][0])
                start = stop
        found: dict[str, np.ndarray] = {
            "input_ids": ids,
            "attention_mask": (segment >= 0).astype(np.int64),
            "target": target,
            "answer": target != IGNORED,
        }
        if not p:
            spelt = [sum(int(self.store["bytes", one][0]) for one in row) for row in rows]
            found["answer_bytes"] = np.array(spelt, np.int64)
        if self.packed:
            found |= {"position_ids": place, "segment": segment}
        if group is not None:
            found["group"] = group
        return {f"{p}{name}": torch.from_numpy(values) for name, values in found.items()}


def described(sides: Mapping[str, str], packed: bool, length: int | None, aligned: bool) -> dict[str, str]:
    """What each column holds, for people; `sides` maps a prefix to the name of its tokenizer."""
    long = f", at most {length:,}" if length else ""
    columns: dict[str, str] = {}
    for prefix, name in sides.items():
        columns |= {
            f"{prefix}input_ids": f"tokens of {name}{long}",
            f"{prefix}attention_mask": "1 for tokens, 0 for padding",
            f"{prefix}target": f"the token that each position has to predict; {IGNORED} where none counts",
            f"{prefix}answer": "where a target counts",
        }
        if packed:
            columns[f"{prefix}position_ids"] = "places that begin again at each document"
            columns[f"{prefix}segment"] = "number of the document in the row; -1 for padding"
        if aligned:
            columns[f"{prefix}group"] = (
                "number of the chunk of bytes that student's and teacher's targets share; -1: none"
            )
    return columns | {"answer_bytes": "UTF-8 bytes of text that the counted targets spell"}
