"""Short rows of tokens packed into long ones, and the attention that keeps them apart."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import RecipeError

WINDOW = 4096


def pack(lengths: Sequence[int], room: int, *, window: int = WINDOW) -> list[list[int]]:
    """Which rows share a row of `room` tokens: first-fit decreasing within each window of rows.

    Within a window the longest row goes first, and each goes where the least room is left that takes it ("best fit";
    at most 11/9 of the fewest rows possible, and 6/9). The same lengths give the same rows; a row's parts are in the
    data's order, and so are the rows (by their first part).

    Args:
        lengths: tokens of each row, from 1 to `room`.
        room: tokens of a packed row.
        window: how many rows are looked at together: rows far apart in the data stay apart.

    Raises:
        RecipeError: a row is longer than `room`.
    """
    if lengths and max(lengths) > room:
        raise RecipeError(f"A row of {max(lengths)} tokens does not fit into packed rows of {room}.")
    packed: list[list[int]] = []
    for start in range(0, len(lengths), window):
        rows = range(start, min(start + window, len(lengths)))
        bins: list[list[int]] = []
        left: list[tuple[int, int]] = []  # (room that is left, bin), sorted
        for row in sorted(rows, key=lambda row: (-lengths[row], row)):
            place = bisect_left(left, (lengths[row], -1))
            if place == len(left):
                bins.append([row])
                insort(left, (room - lengths[row], len(bins) - 1))
            else:
                space, which = left.pop(place)
                bins[which].append(row)
                insort(left, (space - lengths[row], which))
        packed += sorted(sorted(rows) for rows in bins)
    return packed


def attention_of(
    segment: Int[Tensor, "batch length"], dtype: torch.dtype = torch.bool
) -> Bool[Tensor, "batch 1 length length"] | Float[Tensor, "batch 1 length length"]:
    """Which position may look at which: earlier ones (and itself) of the same document.

    Models of transformers take it as `attention_mask`, with `position_ids` that begin again at each document. Padding
    looks at itself alone, so that no softmax is over nothing.

    Args:
        segment: number of the document that each position belongs to; -1 for padding.
        dtype: `torch.bool` gives True where it may look, for scaled_dot_product_attention alone; a floating type (the
            model's) gives 0 there and the type's most negative number elsewhere, to be added to the scores: every
            implementation takes it. Eager attention adds truth values too, as 0 and 1, and says nothing.
    """
    length = segment.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    earlier = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=segment.device)
    allowed = (same & earlier & (segment >= 0)[:, None, :] | itself)[:, None]
    if dtype == torch.bool:
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=segment.device).masked_fill(~allowed, torch.finfo(dtype).min)
