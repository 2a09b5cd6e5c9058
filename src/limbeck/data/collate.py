"""From rows to a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.data.tensors import Batch
from limbeck.errors import RecipeError


def collate(rows: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> Batch:
    """Stack tensors, list everything else; a column at a time.

    Args:
        rows: decoded rows, all with the columns of the first.
        ids: the rows' names, for the sentence when they do not fit together.

    Raises:
        RecipeError: a column is missing in a row, or its tensors differ in shape or type; says column and rows.
    """
    batch: Batch = {}
    for name in rows[0]:
        without = [one for one, row in zip(ids, rows, strict=True) if name not in row]
        if without:
            raise RecipeError(f"The column '{name}' is missing in {listed(without)}.")
        values = [row[name] for row in rows]
        batch[name] = stack(name, values, ids) if isinstance(values[0], Tensor) else values
    return batch


def stack(name: str, values: Sequence[Any], ids: Sequence[str]) -> Tensor:
    """`[shape]` tensors to one `[rows, shape]`.

    Raises:
        RecipeError: they differ in shape or type; names the column, the usual shape and the rows that have another.
    """
    forms = [form(value) for value in values]
    (usual, count), *others = Counter(forms).most_common()
    if others:
        odd = [f"{one} {shape}" for one, shape in zip(ids, forms, strict=True) if shape != usual]
        raise RecipeError(
            f"The column '{name}' cannot be made into one tensor: {count} rows of this batch have {usual}, "
            f"but {listed(odd)}. Rows of a batch need one shape and type."
        )
    return torch.stack(list(values))


def form(value: Any) -> str:
    """Type and shape of a decoded value: `float32 [1, 28, 28]`; `str` for what is no tensor."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__


def listed(words: Sequence[str], most: int = 5) -> str:
    """`a, b, c and 7 more`."""
    shown = ", ".join(words[:most])
    return f"{shown} and {len(words) - most} more" if len(words) > most else shown


def pick(batch: Batch, rows: Int[Tensor, "picked"]) -> Batch:
    """The samples of a batch at these positions; entries without samples (numbers, single strings) stay as they are."""
    positions = rows.tolist()
    return {
        name: value[rows]
        if isinstance(value, Tensor) and value.dim()
        else [value[i] for i in positions]
        if isinstance(value, list)
        else value
        for name, value in batch.items()
    }
