"""Graphs of tokens: who is near whom, over a whole batch and inside one sample.

`token_neighbours` is of **batch scope** (its tokens are those of all samples) and gives one value per token;
`inner_relations` gives one value per sample. The two widths may differ. Computed in fp32 (fp64 for fp64), under
autocast too; gradients flow into both arguments.

Source: Zhang et al. 2023, "Knowledge distillation via token-level relationship graph", arXiv 2306.12442.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.divergences import kl, reverse_kl
from limbeck.losses.masking import finished, keep, widened
from limbeck.losses.relations import counted

__all__ = ["inner_relations", "token_neighbours"]


def token_neighbours(
    student: Float[Tensor, "tokens ours"],
    teacher: Float[Tensor, "tokens theirs"],
    *,
    neighbours: int = 8,
    spread: float = 1.0,
    reverse: bool = False,
    mask: Bool[Tensor, "tokens"] | None = None,
) -> Float[Tensor, "counted"]:
    """KL between what each token's nearest neighbours mean to it for the teacher and for the student.

    Token i: KL(softmax_j A'_ij || softmax_j A_ij) over the `neighbours` j nearest to i (other than i) for the teacher, in
    both graphs, with A_ij = exp(-||x_i - x_j||^2 / (2 sigma)) and sigma = `spread` times the mean of ||x_i - x_j||^2 over
    all pairs, each network its own and without a gradient. `reverse`: the divergence the other way round.

    Unchanged when either side is rotated, shifted or scaled; 0 where a token has one neighbour. The softmax is over
    neighbours alone, so what is no edge gets no probability. The paper's sigma is not known to us: a choice of ours.
    """
    if neighbours < 1 or not spread > 0:
        raise RecipeError(
            f"token-neighbours with {neighbours=}, {spread=}: needed are at least 1 and a number above 0."
        )
    ours, theirs = counted(student, teacher, mask)
    tokens = len(ours)
    if tokens < 3:
        return (ours * 0).sum(1) + (theirs * 0).sum(1)
    near = _nearest(theirs, min(neighbours, tokens - 1))
    a, b = (_closeness(x, near, spread) for x in (ours, theirs))
    return (reverse_kl if reverse else kl)(a, b)


def _nearest(x: Float[Tensor, "tokens width"], count: int) -> Int64[Tensor, "tokens count"]:
    with torch.no_grad():
        apart = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
        return apart.topk(count, dim=1, largest=False).indices


def _closeness(
    x: Float[Tensor, "tokens width"], near: Int64[Tensor, "tokens count"], spread: float
) -> Float[Tensor, "tokens count"]:
    """exp(-squared distance / (2 sigma)) to the named neighbours. The mean over all pairs is twice the total variance."""
    squared = (x.unsqueeze(1) - x[near]).square().sum(2)
    fixed = x.detach()
    mean = 2 * (fixed - fixed.mean(0)).square().sum() / (len(x) - 1)
    return (-squared / (2 * spread * mean).clamp(min=torch.finfo(x.dtype).tiny)).exp()


def inner_relations(
    student: Float[Tensor, "batch tokens ours"],
    teacher: Float[Tensor, "batch tokens theirs"],
    *,
    mask: Bool[Tensor, "batch"] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """Mean squared difference of two samples' token similarities, S = softmax(F F^T / sqrt(width)) row by row.

    0 where the two tokens' features are the same but for a rotation (of equal widths).

    Raises:
        RecipeError: other than [batch, tokens, width], or different numbers of samples or tokens.
    """
    if student.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise RecipeError(
            f"token relations compare [batch, tokens, width] with the same tokens; given were {list(student.shape)} and {list(teacher.shape)}."
        )
    if mask is not None:
        tokens = mask.unsqueeze(1).expand(student.shape[:2])
        student, teacher = keep(student, tokens, 2), keep(teacher, tokens, 2)
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = ((x @ x.mT / math.sqrt(x.shape[2])).softmax(2) for x in (widened(student), widened(teacher)))
    return finished((ours - theirs).square().mean((1, 2)), mask, weight)
