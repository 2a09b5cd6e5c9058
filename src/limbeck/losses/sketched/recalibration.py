"""A few known classes of a teacher, taken, made fewer or recalibrated: sketches in, sketches out; and losses on their buckets."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.across_tokenizers import rows_of
from limbeck.losses.divergences import kl
from limbeck.losses.masking import widened
from limbeck.signals import Projection
from limbeck.sketches import Sketch

__all__: list[str] = []  # no loss by itself: `limbeck.losses.sketched.compare` takes those that are here

_ROOM = 2**24
"""Logits that are held at a time."""

Buckets = Float[Tensor, "*any buckets"]


def top(logits: Tensor | Projection, mask: Bool[Tensor, "..."], k: int, classes: int | None = None) -> Sketch:
    """The k most probable classes of what counts, a piece at a time; nothing is known of the others."""
    at = mask.flatten().nonzero().squeeze(1)
    some, size = rows_of(logits, at), logits.shape[-1] if classes is None else classes
    step = max(1, _ROOM // logits.shape[-1])
    parts = []
    for start in range(0, len(at), step):
        here = slice(start, start + step)
        piece = replace(some, hidden=some.hidden[here]).materialise() if isinstance(some, Projection) else some[here]
        parts.append(Sketch.top(piece[..., :size], k))
    wide = torch.float64 if parts and parts[0].log_probs.dtype == torch.float64 else torch.float32
    count, few = mask.numel(), min(k, size)
    ids = torch.zeros(count, few, dtype=torch.int64, device=mask.device)
    log_probs = torch.full((count, few), -math.inf, dtype=wide, device=mask.device)
    log_tail = torch.full((count,), -math.inf, dtype=wide, device=mask.device)
    if parts:
        ids[at] = torch.cat([part.ids for part in parts])
        log_probs[at] = torch.cat([part.log_probs for part in parts])
        log_tail[at] = torch.cat([part.log_tail for part in parts])
    return Sketch(ids.view(*mask.shape, few), log_probs.view(*mask.shape, few), log_tail.view(mask.shape), size)


def narrowed(sketch: Sketch, k: int) -> Sketch:
    """The k most probable of the known classes; the mass of the others joins the rest.

    Raises:
        RecipeError: the classes were drawn, and are not the most probable ones.
    """
    if sketch.sampled:
        raise RecipeError(
            "needed are the teacher's most probable classes, and what is stored was drawn at random. Store cache.top_k instead."
        )
    log_probs, log_tail = widened(sketch.log_probs), widened(sketch.log_tail)
    if k >= log_probs.shape[-1]:
        return replace(sketch, log_probs=log_probs, log_tail=log_tail)
    log_probs, order = log_probs.sort(dim=-1, descending=True, stable=True)
    log_tail = torch.logaddexp(log_tail, log_probs[..., k:].logsumexp(-1))
    return replace(
        sketch, ids=sketch.ids.long().gather(-1, order[..., :k]), log_probs=log_probs[..., :k], log_tail=log_tail
    )


def tempered(sketch: Sketch, c: float) -> Sketch:
    """softmax(log p / c) over the known classes and the rest, which is one number among them; the order stays."""
    both = torch.cat([sketch.log_probs, sketch.log_tail.unsqueeze(-1)], -1) / c
    whole = both.logsumexp(-1, keepdim=True)
    both = both - torch.where(torch.isneginf(whole), 0, whole)
    return replace(sketch, log_probs=both[..., :-1], log_tail=both[..., -1])


def smoothed(sketch: Sketch, delta: float) -> Sketch:
    """delta from the first to the other known classes in equal shares, at most so much that the first stays the first."""
    p, order = sketch.log_probs.exp().sort(dim=-1, descending=True, stable=True)
    others = (sketch.known.sum(-1, keepdim=True) - 1).clamp(min=0).to(p.dtype)
    second = p[..., 1:2] if p.shape[-1] > 1 else p[..., :1]
    moved = ((p[..., :1] - second) * others / (others + 1)).clamp(max=delta)
    share = torch.where(torch.arange(p.shape[-1], device=p.device) <= others, moved / others.clamp(min=1), 0)
    share[..., :1] = -moved
    return replace(sketch, ids=sketch.ids.long().gather(-1, order), log_probs=(p + share).log())


def among_the_known(student: Float[Tensor, "*any buckets"], teacher: Float[Tensor, "*any buckets"]) -> Tensor:
    """KL over the known classes alone, both sides divided by their mass there; the last bucket, the rest, is left out."""
    return kl(student[..., :-1], teacher[..., :-1])


def as_released(student: Float[Tensor, "*any buckets"], teacher: Float[Tensor, "*any buckets"]) -> Tensor:
    """max_i e^{p_i} - sum_i e^{p_i} q_i, which is sum_i e^{p_i} (p_i - q_i) less its least value: never negative."""
    weight = torch.where(torch.isneginf(teacher), 0, teacher.exp().exp())
    return weight.amax(-1) - (weight * student.softmax(-1)).sum(-1)
