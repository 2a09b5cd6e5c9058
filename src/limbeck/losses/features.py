"""Distances between a student's features and a teacher's: one value per sample.

Features have their width in `dim`: [batch, width], [batch, tokens, width], or [batch, channels, height, width] with
`dim=1`. Everything else after the batch are positions. The distance at a position is averaged (mse, smooth_l1) or
taken (cosine) over `dim`; the value of a sample is the mean over its positions.

- `mask` (bool, [batch, *positions], or [batch]): True counts. The mean is over the positions of the sample that count;
  a sample without any gives 0. Gradients of masked entries are exactly 0, even where features are nan or infinite.
- `weight` ([batch]) multiplies.
- Computed in fp32 (fp64 for fp64). Gradients flow into **both** arguments; nothing is detached.

Errors: `RecipeError` for different shapes, or for a mask or weight that does not fit.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, finished, keep, paired
from limbeck.losses.vectors import unit

__all__ = ["cosine", "mse", "smooth_l1"]

Features = Float[Tensor, "batch ..."]
Values = Float[Tensor, "batch"]


def mse(
    student: Features,
    teacher: Features,
    *,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Values:
    """Mean over all entries of a sample of (s - t)^2. The distance of FitNets (Romero et al. 2015), there with a half.

    A squared Euclidean distance, the published form of several methods, is the width times this.
    """
    student, teacher = _kept(student, teacher, dim, mask)
    return _over_positions(F.mse_loss(student, teacher, reduction="none").mean(dim), mask, weight)


def smooth_l1(
    student: Features,
    teacher: Features,
    *,
    beta: float = 1.0,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Values:
    """Mean over all entries of a sample of d^2 / (2 beta) where d = |s - t| < beta, else d - beta / 2.

    `beta` >= 0; at 0 it is the absolute difference. Source: Girshick 2015, "Fast R-CNN", equation 3 (beta = 1).
    """
    if not beta >= 0:
        raise RecipeError(f"smooth-l1 with beta={beta}: needed is a number of at least 0.")
    student, teacher = _kept(student, teacher, dim, mask)
    return _over_positions(F.smooth_l1_loss(student, teacher, beta=beta, reduction="none").mean(dim), mask, weight)


def cosine(
    student: Features,
    teacher: Features,
    *,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Values:
    """1 - cos(s, t) along `dim`, in [0, 2], mean over the positions; 0 for equal directions, whatever their lengths.

    Computed as half the squared distance of the unit vectors, which is the same number without cancellation: exactly 0
    for equal vectors. A zero vector has no direction: where either is zero the value is 1, without a gradient.
    """
    student, teacher = _kept(student, teacher, dim, mask)
    zero = (student == 0).all(dim) | (teacher == 0).all(dim)
    values = (unit(student, dim) - unit(teacher, dim)).square().sum(dim) / 2
    return _over_positions(values.masked_fill(zero, 1.0), mask, weight)


def _kept(
    student: Features, teacher: Features, dim: int, mask: Bool[Tensor, "batch ..."] | None
) -> tuple[Features, Features]:
    student, teacher = paired(student, teacher)
    if student.dim() < 2 or dim % student.dim() == 0:
        raise RecipeError(f"features have shape {list(student.shape)}; needed is [batch, width], or more dimensions.")
    return keep(student, mask, dim), keep(teacher, mask, dim)


def _over_positions(
    values: Float[Tensor, "batch ..."], mask: Bool[Tensor, "batch ..."] | None, weight: Float[Tensor, "batch"] | None
) -> Values:
    positions = tuple(range(1, values.dim()))
    if mask is None:
        return finished(values.mean(positions) if positions else values, None, weight)
    counts = aligned(mask.bool(), values.shape, "mask").expand_as(values)
    total, number = torch.where(counts, values, 0.0), counts
    if positions:
        total, number = total.sum(positions), counts.sum(positions)
    return finished(total / number.clamp(min=1), number > 0, weight)
