"""Decoded rows: from memory where they fit, else decoded when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.data.collate import collate
from limbeck.data.column import Column, reason
from limbeck.data.table import Table
from limbeck.data.tensors import Batch
from limbeck.errors import RecipeError


@dataclass
class Store:
    """The good rows of a table, by position.

    Attributes:
        table, columns: where a value comes from when it is not kept, and how it is decoded.
        numbers: row number of each good row: its id in a batch.
        ids: its name for people.
        kept: columns held in memory: a tensor `[good rows, ...]` or a list each.
    """

    table: Table
    columns: Mapping[str, Column]
    numbers: Int[Tensor, "rows"]
    ids: Sequence[str]
    kept: Mapping[str, Tensor | list[Any]]

    def take(self, positions: Int[Tensor, "batch"]) -> Batch:
        """A batch with every column and `id`."""
        batch: Batch = {}
        numbers = self.numbers[positions]
        read = [name for name in self.columns if name not in self.kept]
        if read:
            names = [self.ids[position] for position in positions.tolist()]
            batch = collate([self._decode(row, read) for row in numbers.tolist()], names)
        for name, values in self.kept.items():
            if isinstance(values, Tensor):
                batch[name] = values.index_select(0, positions)
            else:
                batch[name] = [values[position] for position in positions.tolist()]
        return {name: batch[name] for name in self.columns} | {"id": numbers}

    def _decode(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        cells, folder = self.table.cells(row)
        values = {}
        for name in names:
            try:
                values[name] = self.columns[name].read(cells, name, folder)
            except Exception as error:
                raise RecipeError(
                    f"Row {row}: {name} {reason(error)}. It could be read when the data were opened."
                ) from error
        return values


class RowSplit(Dataset):
    """The rows of one split in a `Store`; `batch["id"]` is the row number in the whole source, bad rows counted."""

    def __init__(self, store: Store, positions: Int[Tensor, "rows"]) -> None:
        self.store = store
        self.positions = positions
        self.ids: list[str] = [store.ids[position] for position in positions.tolist()]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Batch:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {name: values[0] for name, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> Batch:
        return self.store.take(self.positions[torch.as_tensor(indices, dtype=torch.int64)])
