"""Cutting a batch into pieces, and finding how many are needed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


def rows(batch: Mapping[str, Any]) -> int:
    """How many samples a batch holds: the length of its tensors and lists.

    Raises:
        ValueError: no column, or columns of different lengths; they are named.
    """
    lengths = {key: len(value) for key, value in batch.items() if _has_rows(value)}
    if not lengths:
        raise ValueError("an update's batch holds no tensor with samples in it.")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} {n}" for key, n in lengths.items())
        raise ValueError(
            f"an update's batch holds different numbers of samples: {told}. The first dimension is the samples."
        )
    return next(iter(lengths.values()))


def cut(batch: Mapping[str, Any], pieces: int) -> list[Batch]:
    """The batch in `pieces` runs of rows, sizes differing by one at most; at most one piece per row.

    Values without rows (numbers, strings, scalars) go into every piece. Tensors are views, not copies.
    """
    count = rows(batch)
    pieces = max(1, min(pieces, count))
    if pieces == 1:
        return [dict(batch)]
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [
        {key: value[low:high] if _has_rows(value) else value for key, value in batch.items()}
        for low, high in itertools.pairwise(edges)
    ]


def in_step(batch: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The batch in exactly `count` pieces, as every process has them; where rows are too few, the last are ghosts."""
    parts = cut(batch, count)
    ghost = cut(batch, max(rows(batch), 1))[0] | {"ghost": True}
    return parts + [ghost] * (count - len(parts))


def _has_rows(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.dim() > 0) or isinstance(value, (list, tuple))


def kept_bytes(run: Callable[[], Any], besides: Iterable[Any] = ()) -> int:
    """How many bytes autograd keeps for the backward pass of what `run` computes: each storage once, and none of `besides`.

    What is kept is a detached alias: an operation that keeps its own output would otherwise hold itself for ever.
    """
    seen: dict[int, int] = {}
    here = {t.untyped_storage().data_ptr() for t in besides if isinstance(t, Tensor) and not hasattr(t, "to_local")}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    del result
    return sum(size for place, size in seen.items() if place not in here)


def find_pieces(trial: Callable[[int], int], limit: int, most: int) -> int:
    """The least power of two of pieces with which one fits into `limit` bytes, by trying.

    Args:
        trial: how many bytes the first of k pieces needs.
        limit: bytes.
        most: the number of rows; more pieces than that there are not.
    """
    pieces = 1
    while pieces < most:
        if trial(pieces) <= limit:
            return pieces
        pieces *= 2
    return most
