"""Channels compared with channels: neuron selectivity (NST) and inter-channel correlation (ICKD).

Conventions. Features are maps [batch, channels, height, width] or tokens [batch, tokens, width] (`dim` says where the
channels are; by default 1 for maps, the last for tokens). A channel is the vector of its activations over positions.

- `mask` (bool, [batch, *positions], or [batch]): positions that count; the others have exactly no gradient. A sample
  without any gives 0.
- `weight` ([batch]) multiplies. Computed in fp32 (fp64 for fp64), also under autocast; gradients flow into **both**.

Errors: `RecipeError` for vectors where positions are needed, for shapes or masks that do not fit.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import Columns, columns, facing, products, spread
from limbeck.losses.masking import finished
from limbeck.losses.vectors import unit

__all__ = ["ickd", "nst"]

Features = Float[Tensor, "batch ..."]
Values = Float[Tensor, "batch"]


def nst(
    student: Features,
    teacher: Features,
    *,
    kernel: Literal["linear", "polynomial", "gaussian"] = "polynomial",
    degree: int = 2,
    offset: float = 0.0,
    bandwidth: float | None = None,
    dim: int | None = None,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Values:
    """Squared maximum mean discrepancy of the channels, mean k(s, s') + mean k(t, t') - 2 mean k(s, t), per sample.

    Every channel is scaled to unit length over the positions; means are over all pairs of channels, so student and
    teacher may have different numbers of them, and their order does not matter. Where sizes differ, the larger map is
    average-pooled to the smaller. At least 0 (up to rounding).

    Args:
        kernel: `linear` a.b (the squared distance of the mean channels), `polynomial` (a.b + offset)^degree, or
            `gaussian` exp(-|a - b|^2 / (2 bandwidth^2)).
        degree: at least 1, published 2.
        offset: at least 0, published 0.
        bandwidth: above 0; None: per sample, its square is the mean squared distance of the student's to the teacher's
            channels, taken as a constant (no gradient through it), as in the paper.

    Source: Huang and Wang 2017, "Like what you like: knowledge distill via neuron selectivity transfer", equations 5 to 8.
    """
    if kernel not in ("linear", "polynomial", "gaussian"):
        raise RecipeError(f"nst with kernel '{kernel}': there is linear, polynomial and gaussian.")
    if degree < 1 or offset < 0 or (bandwidth is not None and not bandwidth > 0):
        raise RecipeError(
            f"nst with degree={degree}, offset={offset}, bandwidth={bandwidth}: needed are a degree of at least 1, an "
            "offset of at least 0, and a bandwidth above 0 or none."
        )
    s, t, counts = facing(student, teacher, "neuron selectivity transfer", dim=dim, mask=mask)
    s, t = unit(s), unit(t)
    if kernel == "linear":
        values = (s.mean(1) - t.mean(1)).square().sum(1)
    elif kernel == "polynomial":
        own, other, both = ((products(a, b) + offset).pow(degree).mean((1, 2)) for a, b in ((s, s), (t, t), (s, t)))
        values = own + other - 2 * both
    else:
        between = [_squared_distances(a, b) for a, b in ((s, s), (t, t), (s, t))]
        square = between[2].detach().mean((1, 2), keepdim=True) if bandwidth is None else s.new_tensor(bandwidth**2)
        square = square.clamp(min=torch.finfo(s.dtype).tiny)
        own, other, both = (torch.exp(-d / (2 * square)).mean((1, 2)) for d in between)
        values = own + other - 2 * both
    return finished(values, None if counts is None else counts.any(1), weight)


def ickd(
    student: Features,
    teacher: Features,
    *,
    normalise: bool = True,
    dim: int | None = None,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Values:
    """Per sample (1/C) sum_cd (G_s - G_t)_cd^2, G the correlation of channels: G_cd = f_c . f_d, each row of unit length.

    Both need the same channels, in the same order; the positions may differ in number and size (a vector has one).
    With `normalise` (the released code) scaling a feature changes nothing. Without it G are the inner products divided
    by the number of positions, and the mean over all C^2 entries is taken (the paper's equation).

    Source: Liu et al. 2021, "Exploring inter-channel correlation for diversity-preserved knowledge distillation" (ICKD-C),
    arXiv 2202.03680, equations 2 to 4.
    """
    counts = spread(mask, student.shape, dim) if mask is not None else None
    s, t = (columns(x, dim=dim, mask=mask) for x in (student, teacher))
    if len(s) != len(t) or s.shape[1] != t.shape[1]:
        raise RecipeError(
            f"inter-channel correlation compares channel pairs: the student's tensor has shape {list(student.shape)}, the "
            f"teacher's {list(teacher.shape)}; needed are equal numbers of channels. Give the term a bridge."
        )
    if s.dtype != t.dtype:
        s, t = s.double(), t.double()
    gap = _correlation(s, counts, normalise) - _correlation(t, counts, normalise)
    values = gap.square().sum((1, 2)) / s.shape[1] ** (1 if normalise else 2)
    return finished(values, None if counts is None else counts.any(1), weight)


def _correlation(
    x: Columns, counts: Bool[Tensor, "batch positions"] | None, normalise: bool
) -> Float[Tensor, "batch channels channels"]:
    if normalise:
        largest = x.detach().abs().amax((1, 2), keepdim=True)
        x = x / torch.where(
            largest > 0, largest, 1.0
        )  # cancels in the rows, and keeps products inside the number range
        return unit(products(x, x))
    number = x.shape[2] if counts is None else counts.sum(1).clamp(min=1)[:, None, None]
    return products(x, x) / number


def _squared_distances(a: Float[Tensor, "batch n d"], b: Float[Tensor, "batch m d"]) -> Float[Tensor, "batch n m"]:
    lengths = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None, :]
    return (lengths - 2 * products(a, b)).clamp(min=0)
