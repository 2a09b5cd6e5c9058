"""Divergences on a part of the classes: a soft window of the teacher's cumulative distribution; products of neighbours.

Both take logits of rows, [rows, classes], and hold several tensors of that size: `limbeck.losses.across_tokenizers.by_rows`
gives them a piece at a time. The teacher is a constant. Values are one per row, in nats, in fp32 (fp64 for fp64).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.losses.masking import paired

__all__: list[str] = []  # they need bounds, or neighbours: no term of a recipe

Rows = Float[Tensor, "rows classes"]
PerRow = Float[Tensor, "rows"]


def windowed_kl(
    student: Rows,
    teacher: Rows,
    low: PerRow,
    high: PerRow,
    *,
    label: Int64[Tensor, "rows"] | None = None,
    softness: float = 0.25,
    floor: float = 0.5,
    clipped: Literal["bucket", "drop"] = "bucket",
) -> PerRow:
    """sum_v M_v p_v log(p_v / q_v) + P log(P / Q): what `window` keeps class by class, the rest P = sum (1 - M) p as one.

    As every divergence of distributions that were joined it is never negative, never above KL(p || q), and 0 where the
    student agrees. `clipped=drop` leaves the second part out: no divergence then, and below 0 where the student has more of
    the kept classes than the teacher. The window [0, 1] gives KL(p || q) exactly. Gradients flow into the student and into
    both bounds, 0 <= low <= high <= 1.
    """
    student, teacher = paired(student, teacher)
    log_q, log_p = student.log_softmax(-1), teacher.detach().log_softmax(-1)
    p = log_p.exp()
    kept = window(p, low.to(p.dtype), high.to(p.dtype), label=label, softness=softness, floor=floor)
    inside = (kept * p * torch.where(p == 0, 0, log_p - log_q)).sum(-1)
    if clipped == "drop":
        return inside
    outside, theirs = ((1 - kept) * p).sum(-1), ((1 - kept) * log_q.exp()).sum(-1)
    least = torch.finfo(p.dtype).tiny
    return inside + outside * ((outside + least).log() - (theirs + least).log())


def window(
    p: Rows, low: PerRow, high: PerRow, *, label: Int64[Tensor, "rows"] | None = None, softness: float, floor: float
) -> Rows:
    """How much of each class is kept, M in [0, 1].

    With c_v the mass of all more probable classes and half of v's own, M_v = s(c_v, low) s(high, c_v), s(a, b) =
    sigmoid((logit a - logit b) / softness): steep at the bounds for a small softness, and exactly 1 everywhere for the
    window [0, 1]. The `label` (none where below 0) is kept whole. Where less mass than `floor` < 1 is kept, all classes get
    the same share of what is missing from 1, so that it is.
    """
    sorted_p, order = p.sort(dim=-1, descending=True, stable=True)
    least = torch.finfo(p.dtype).tiny
    before = sorted_p.cumsum(-1) - sorted_p / 2
    after = sorted_p.flip(-1).cumsum(-1).flip(-1) - sorted_p / 2  # not 1 - before, which would cancel in the tail
    odds = torch.zeros_like(p).scatter(-1, order, before.clamp(min=least).log() - after.clamp(min=least).log())
    above = ((odds - low.logit().unsqueeze(-1)) / softness).sigmoid()
    kept = above * ((high.logit().unsqueeze(-1) - odds) / softness).sigmoid()
    if label is not None:
        here = torch.zeros_like(p, dtype=torch.bool).scatter(-1, label.clamp(min=0).unsqueeze(-1), True)
        kept = torch.where(here & (label >= 0).unsqueeze(-1), 1.0, kept)
    mass = (kept * p).sum(-1, keepdim=True)
    lift = (floor - mass).clamp(min=0) / (1 - mass).clamp(min=1 - floor)
    return kept + (1 - kept) * lift


def neighbours_apart(
    student: Rows,
    student_next: Rows,
    teacher: Rows,
    teacher_next: Rows,
    *,
    top: int | None = None,
    distance: Literal["l2", "l1"] = "l2",
) -> PerRow:
    """|p_i * p_{i+1} - q_i * q_{i+1}|, products class by class, in the L2 (or L1) norm; 0 where both sides agree.

    `top`: only over classes that are among the so many most probable of one of the four distributions.
    """
    student, teacher = paired(student, teacher)
    student_next, teacher_next = paired(student_next, teacher_next)
    teacher, teacher_next = teacher.detach(), teacher_next.detach()
    gap = student.softmax(-1) * student_next.softmax(-1) - teacher.softmax(-1) * teacher_next.softmax(-1)
    if top is not None:
        kept = torch.zeros_like(gap, dtype=torch.bool)
        for side in (student, student_next, teacher, teacher_next):
            kept = kept.scatter(-1, side.detach().topk(min(top, side.shape[-1]), -1).indices, True)
        gap = torch.where(kept, gap, 0)
    return torch.linalg.vector_norm(gap, 2 if distance == "l2" else 1, dim=-1)


def neighbours_in_spans(mask: Bool[Tensor, "batch tokens"], length: int) -> Bool[Tensor, "batch tokens"]:
    """Where a position and the next one lie in one span: each run of counted positions, cut every `length`."""
    at = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    begins = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    place = at - torch.where(begins, at, 0).cummax(1).values
    following = torch.nn.functional.pad(mask, (0, 1))[:, 1:]
    return mask & following & ((place + 1) % length != 0)
