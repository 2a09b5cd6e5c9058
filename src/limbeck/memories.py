"""Memories with one entry per training row: which entry an id means, and what a column says of every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from limbeck.data.rows import RowSplit
from limbeck.data.tensors import Split, TensorSplit
from limbeck.errors import RecipeError


class Entries(nn.Module):
    """From stable ids (`batch["id"]`, any int64 numbers) to entries 0 to len - 1 of a memory, in the split's order.

    Its buffers move with the method, and are found anew from the data, so no checkpoint holds them.
    """

    known: Int64[Tensor, "rows"]
    order: Int64[Tensor, "rows"]

    def __init__(self, ids: Int64[Tensor, "rows"]):
        super().__init__()
        known, order = ids.sort()
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("order", order, persistent=False)

    @classmethod
    def of(cls, split: Split) -> Entries:
        """One entry for each row of a split."""
        return cls(columns(split, ["id"])["id"])

    def __len__(self) -> int:
        return len(self.known)

    def forward(self, ids: Int64[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
        """The entries of these ids.

        Raises:
            RecipeError: an id that is none of the rows that the memory was made for.
        """
        at = torch.searchsorted(self.known, ids).clamp(max=len(self) - 1)
        if not torch.equal(self.known[at], ids):
            strange = ids[self.known[at] != ids][:5].tolist()
            raise RecipeError(
                f"a memory of the {len(self)} training rows was asked for rows that are not among them (id {', '.join(map(str, strange))}). "
                "It can only be used with the split that the method is trained on."
            )
        return self.order[at]


def columns(split: Split, names: Sequence[str], *, at_once: int = 256) -> dict[str, Tensor]:
    """Whole columns of a split as one tensor each, in its order; `id` is one that every split has.

    Columns held in memory are read there. Others are read with their whole rows, `at_once` at a time.

    Raises:
        RecipeError: the split has no such column, or it holds no tensors.
    """
    found: dict[str, Tensor] = {}
    if isinstance(split, TensorSplit):
        found = {name: split.tensors[name] for name in names if name in split.tensors}
    elif isinstance(split, RowSplit):
        kept = {**split.store.kept, "id": split.store.numbers}
        found = {
            name: values[split.positions]
            for name, values in kept.items()
            if isinstance(values, Tensor) and name in names
        }
    missing = [name for name in names if name not in found]
    if not missing:
        return found
    read: dict[str, list[Tensor]] = {name: [] for name in missing}
    for start in range(0, len(split), at_once):
        batch = split.__getitems__(list(range(start, min(start + at_once, len(split)))))
        for name in missing:
            if not isinstance(batch.get(name), Tensor):
                raise RecipeError(
                    f"the training rows have no column '{name}' of numbers, which this method remembers them by."
                )
            read[name].append(batch[name])
    return found | {name: torch.cat(parts) for name, parts in read.items()}


__all__ = ["Entries", "columns"]
