"""A data set with its splits, and the split that lives in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from limbeck.errors import RecipeError, nearest

Batch = dict[str, Any]  # a tensor or a list per column


class Split(Protocol):
    """Rows of one part of a data set, by position.

    `split[i]` is one row, `split.__getitems__([i, j])` a collated batch (a tensor or a list per column, and `"id"`:
    int64 row numbers, unique over the whole data set). `ids` are the rows' names for people, in the same order.
    """

    ids: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class TensorSplit(Dataset):
    """Rows held in memory as one tensor per column; a batch is one `index_select` per column.

    Args:
        tensors: column name -> tensor whose first dimension counts the rows (the same for all).
        first_id: row number of the first row; the rows get `first_id, first_id + 1, ...` in the column `id`.
        ids: a name for each row, for people; by default its row number.

    Raises:
        RecipeError: no column, columns of different length, a column called `id`, or another number of names.
    """

    def __init__(self, tensors: Mapping[str, Tensor], first_id: int = 0, ids: Sequence[str] | None = None) -> None:
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) != 1:
            raise RecipeError(f"The columns of a split need one common number of rows, here: {lengths}.")
        if "id" in tensors:
            raise RecipeError("The column 'id' is made from first_id: give the rows' own names as ids=[...].")
        self.length = next(iter(lengths.values()))
        numbers = torch.arange(first_id, first_id + self.length)
        self.tensors: dict[str, Tensor] = {**tensors, "id": numbers}
        self.ids: list[str] = [str(number) for number in numbers.tolist()] if ids is None else list(ids)
        if len(self.ids) != self.length:
            raise RecipeError(f"A split of {self.length} rows was given {len(self.ids)} ids; each row needs one.")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        index = torch.as_tensor(indices, dtype=torch.int64)
        return {name: tensor.index_select(0, index) for name, tensor in self.tensors.items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[index] for index in range(self.length))


@dataclass
class Data:
    """A data set: its splits, what its columns hold, and what its class numbers mean.

    Attributes:
        splits: split name (`train`, `validation`, `test`) -> rows.
        columns: column name -> a short description for people.
        labels: label column -> the name of each class, in the order of the class numbers.
        fingerprint: sha256 (hex) that changes with any row or class name; computed here for splits in memory.
        source: where the rows came from: a path, or the function that made them.
        notices: sentences a person should read: what was guessed, split or left out.
        encoded: of generators: a cache (`limbeck.teachers.stored.Stored`) of what these rows are, encoded.
    """

    splits: Mapping[str, Split]
    columns: dict[str, str] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    fingerprint: str = ""
    source: str = ""
    notices: list[str] = field(default_factory=list)
    encoded: Any = None

    def __post_init__(self) -> None:
        if not self.fingerprint:
            self.fingerprint = fingerprint(self.splits, self.labels)

    def __getitem__(self, split: str) -> Split:
        if split not in self.splits:
            raise RecipeError(f"The data have no split '{split}'. {nearest(split, self.splits)}")
        return self.splits[split]

    def describe(self) -> str:
        """The data in a few lines: source, rows per split, columns with shapes, classes."""
        rows = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        lines = [f"{self.source or 'data'}: {rows} (fingerprint {self.fingerprint[:12]})"]
        first = next(iter(self.splits.values()), None)
        tensors: dict[str, Tensor] = first.tensors if isinstance(first, TensorSplit) else {}
        for name, text in self.columns.items():
            shape = f" {list(tensors[name].shape[1:])}" if name in tensors and tensors[name].dim() > 1 else ""
            lines.append(f"  {name}{shape}: {text}")
        for name, names in self.labels.items():
            some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            lines.append(f"  {name}: {len(names)} classes ({some})")
        return "\n".join(lines)


def fingerprint(splits: Mapping[str, Split], labels: Mapping[str, Sequence[str]]) -> str:
    """Sha256 over the bytes of all rows (with name, type and shape of each column) and over the class names.

    Raises:
        RecipeError: a split that is not in memory, whose bytes would have to be read from disk: give its fingerprint.
    """
    digest = hashlib.sha256(repr(sorted((name, list(names)) for name, names in labels.items())).encode())
    for split_name in sorted(splits):
        split = splits[split_name]
        if not isinstance(split, TensorSplit):
            raise RecipeError(
                f"The split '{split_name}' is not held in memory: give Data(..., fingerprint=...) with it."
            )
        for name in sorted(split.tensors):
            tensor = split.tensors[name].detach().cpu().contiguous()
            digest.update(f"{split_name}/{name}/{tensor.dtype}/{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
