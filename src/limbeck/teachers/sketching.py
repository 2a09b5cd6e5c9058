"""From what a server says of texts to a sketch of the whole batch: each position's tokens, and the exact mass of all others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from limbeck.sketches import Sketch

Span = tuple[int, int, int]


def spans(mark: Int64[Tensor, "batch tokens"]) -> list[Span]:
    """Row, start and end of every run of one and the same value above zero: texts, of packed rows every document."""
    found = []
    for row, values in enumerate(mark.tolist()):
        start = 0
        for value, run in itertools.groupby(values):
            end = start + len(list(run))
            if value > 0:
                found.append((row, start, end))
            start = end
    return found


def sketch(shape: Sequence[int], places: Sequence[Span], answers: Sequence[Mapping[str, Any]], classes: int) -> Sketch:
    """A sketch [batch, tokens, classes] with each answer (`ids` and `log_probs`, a list per position) in its place.

    The mass of the rest is 1 - the sum of what is known (in fp64; none where all classes are known). Where nothing was
    said nothing is known, and all of the mass is in the rest.
    """
    wide = max((len(known) for answer in answers for known in answer["ids"]), default=1) or 1
    ids = torch.zeros(*shape, wide, dtype=torch.int64)
    log_probs = torch.full((*shape, wide), -math.inf, dtype=torch.float64)
    for (row, start, end), answer in zip(places, answers):
        ids[row, start:end] = torch.tensor(_filled(answer["ids"], wide, 0), dtype=ids.dtype)
        log_probs[row, start:end] = torch.tensor(_filled(answer["log_probs"], wide, -math.inf), dtype=log_probs.dtype)
    whole = (log_probs > -math.inf).sum(-1) == classes
    rest = torch.log1p(-log_probs.exp().sum(-1).clamp(max=1)).masked_fill(whole, -math.inf)
    return Sketch(ids, log_probs.float(), rest.float(), classes)


def _filled(rows: Sequence[Sequence[Any]], wide: int, fill: Any) -> list[list[Any]]:
    return [[*row, *[fill] * (wide - len(row))] for row in rows]
