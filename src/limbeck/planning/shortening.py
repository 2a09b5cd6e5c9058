"""A recipe of which only the first rows are measured on."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Subset

from limbeck.data.tensors import Data, TensorSplit
from limbeck.planning.watching import bytes_of
from limbeck.recipe import Recipe

ROWS = 1024  # of a split that is only measured on; the rest is counted


class ShortRecipe(Recipe):
    """The recipe with splits that are only measured on cut to their first rows."""

    full: dict[str, int]
    data_bytes: int

    def evaluate_choices(self) -> list[dict[str, Any]]:
        """The checks with one sample for each row, however many are wanted."""
        return [{key: v for key, v in choice.items() if key != "samples"} for choice in super().evaluate_choices()]

    def build_data(self, *, only: str | None = None) -> Data:
        """The data; `full` keeps how many rows each split has."""
        data = super().build_data(only=only)
        self.full = {name: len(split) for name, split in data.splits.items()}
        tensors = [s.tensors for s in data.splits.values() if isinstance(s, TensorSplit)]
        self.data_bytes = bytes_of(t for own in tensors for t in own.values())
        short = {name: split if name == "train" else first(split, ROWS) for name, split in data.splits.items()}
        return Data(short, data.columns, data.labels, data.fingerprint, data.source, data.notices)


def first(split: Any, count: int) -> Any:
    """The first rows of a split; one in memory stays one."""
    if len(split) <= count:
        return split
    if isinstance(split, TensorSplit):
        kept = {name: tensor[:count] for name, tensor in split.tensors.items() if name != "id"}
        return TensorSplit(kept, int(split.tensors["id"][0]), split.ids[:count])
    return _First(split, count)


class _First(Subset):
    """The first rows of a split that reads from disk."""

    def __init__(self, split: Any, count: int):
        super().__init__(split, range(count))
        self.ids = split.ids[:count]
