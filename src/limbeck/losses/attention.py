"""Attention transfer: where a network looks, whatever channels it has.

Conventions. Features are maps [batch, channels, height, width] or tokens [batch, tokens, width] (`dim` says where the
channels are; by default 1 for maps, the last for tokens). Student and teacher may have different numbers of channels,
and no bridge is needed; where their sizes differ, the larger one is average-pooled to the smaller.

- `mask` (bool, [batch, *positions], or [batch]): True counts. A position that does not count has no attention, no
  part in the mean and exactly no gradient, whatever it holds.
- `weight` ([batch]) multiplies. Computed in fp32 (fp64 for fp64); gradients flow into **both** arguments.

Errors: `RecipeError` for vectors (they have no positions), or for a mask that does not fit.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import Columns, columns, facing
from limbeck.losses.features import mse
from limbeck.losses.masking import finished
from limbeck.losses.vectors import unit

__all__ = ["attention_transfer"]

Features = Float[Tensor, "batch ..."]


def attention_map(
    x: Features, *, power: float = 2.0, dim: int | None = None, mask: Bool[Tensor, "batch ..."] | None = None
) -> Float[Tensor, "batch positions"]:
    """Q = q / |q| with q_i = mean over channels c of |x_ci|^power: at each position, how much of the network is awake.

    Entries are at least 0 and of unit length together. The same for a * x (a not 0), for channels in another order,
    and, with `power` 2, for any rotation of the channels. A map of zeros has no attention: all zero, without gradient.

    Raises:
        RecipeError: `power` below 1, where the gradient is infinite at 0.
    """
    return _attention(columns(x, dim=dim, mask=mask), power)


def attention_transfer(
    student: Features,
    teacher: Features,
    *,
    power: float = 2.0,
    form: Literal["squared", "norm"] = "squared",
    dim: int | None = None,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """The distance of the attention maps Q of student and teacher, one value per sample.

    - `squared`: mean over positions of (Q_s - Q_t)^2, as the authors' and all later code has it. Published weights
      (1000) belong to it: with n positions a value is at most 2 / n.
    - `norm`: the Euclidean length |Q_s - Q_t|, at most sqrt(2): equation 2 of the paper.

    Source: Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.1, equation 2.
    """
    if form not in ("squared", "norm"):
        raise RecipeError(f"attention-transfer with form '{form}': there is squared and norm.")
    s, t, counts = facing(student, teacher, "attention transfer", dim=dim, mask=mask)
    q, p = _attention(s, power), _attention(t, power)
    if form == "squared":
        return mse(q.unsqueeze(2), p.unsqueeze(2), mask=counts, weight=weight)
    return finished(torch.linalg.vector_norm(q - p, dim=1), None if counts is None else counts.any(1), weight)


def _attention(x: Columns, power: float) -> Float[Tensor, "batch positions"]:
    if not power >= 1:
        raise RecipeError(f"attention with power={power}: needed is a number of at least 1; published is 2.")
    largest = x.detach().abs().amax((1, 2), keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)  # changes no map, and keeps powers inside the number range
    return unit((x.square() if power == 2 else x.abs().pow(power)).mean(1))
