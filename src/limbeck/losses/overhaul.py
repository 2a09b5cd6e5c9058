"""The distance of the overhaul of feature distillation, and the margin at which a negative response stops mattering."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.losses.masking import finished, keep, paired, widened

__all__ = ["partial_l2"]


def partial_l2(
    student: Float[Tensor, "batch channels *positions"],
    teacher: Float[Tensor, "batch channels *positions"],
    *,
    margin: Float[Tensor, "channels"] | float = 0.0,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """The **sum** over a sample's entries of (s - t')^2 with t' = max(t, m), but 0 where t <= 0 and s <= t'.

    Features before their ReLU, channels in dimension 1. A positive response of the teacher is met exactly. A negative
    one only has to be negative enough: the student is drawn down to it, or to the channel's margin m < 0 where it is
    lower still, and nothing happens where the student lies below already. `mask` ([batch] or [batch, *positions])
    says what counts, `weight` is per sample. Gradients flow into both arguments.

    Source: Heo et al. 2019, "A comprehensive overhaul of feature distillation", equations 2 and 4.
    """
    student, teacher = paired(student, teacher)
    student, teacher = keep(student, mask, 1), keep(teacher, mask, 1)
    if isinstance(margin, Tensor):
        margin = margin.to(teacher.dtype).view(-1, *[1] * (teacher.dim() - 2))
    goal = torch.maximum(teacher, torch.as_tensor(margin, dtype=teacher.dtype, device=teacher.device))
    apart = student - goal
    apart = apart.masked_fill((teacher <= 0) & (apart <= 0), 0.0)
    values = apart.square()
    if mask is not None:  # a masked entry is 0 on both sides, and 0 lies above no margin
        values = keep(values, mask, 1)
    return finished(values.flatten(1).sum(1), None, weight)


def expected_negative(
    mean: Float[Tensor, "channels"], deviation: Float[Tensor, "channels"]
) -> Float[Tensor, "channels"]:
    """E[x | x < 0] for x ~ N(mean, deviation^2), per channel: the margin of a channel behind a batch normalisation.

    mean - deviation phi(mean / deviation) / Phi(-mean / deviation); where a negative value is rarer than 1 in 1000 it is
    -3 deviation, as published. `mean` is the normalisation's bias, `deviation` the absolute value of its weight; never
    above 0. A channel that does not vary has its (negative) mean.

    Source: Heo et al. 2019, section 3.2; the exception from its code.
    """
    mean, deviation = widened(mean), widened(deviation).abs()
    spread = deviation.clamp(min=torch.finfo(mean.dtype).tiny ** 0.5)
    z = mean / spread
    below = torch.special.ndtr(-z)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    truncated = mean - deviation * density / below.clamp(min=1e-3)
    return torch.where(below > 1e-3, truncated.clamp(max=0.0), -3 * deviation)
