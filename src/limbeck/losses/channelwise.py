"""Channel-wise distillation: for every channel, where on the map it is active."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import facing
from limbeck.losses.divergences import kl
from limbeck.losses.masking import finished

__all__ = ["cwd"]


def cwd(
    student: Float[Tensor, "batch ..."],
    teacher: Float[Tensor, "batch ..."],
    *,
    temperature: float = 4.0,
    scale: bool = True,
    dim: int | None = None,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """Mean over channels c of T^2 KL(softmax_i(teacher_ci / T) || softmax_i(student_ci / T)), i the positions.

    In nats, at least 0. Each channel (a class, when the maps are logits) is a distribution over positions, so a
    constant added to a channel changes nothing. Published code sums over channels and divides by batch * channels:
    the mean over samples of this.

    Args:
        student: maps [batch, channels, height, width], or tokens [batch, tokens, width]; `dim` says where the channels
            are (by default 1 for maps, the last for tokens). Equal numbers of channels; the larger map is
            average-pooled to the smaller.
        teacher: the same.
        temperature: T > 0.
        scale: multiply by T^2.
        mask: bool, [batch, *positions] or [batch]: positions that count. The others take no part in the softmax, and
            have exactly no gradient. A sample without any gives 0.
        weight: [batch], multiplies.

    Source: Shu et al. 2021, "Channel-wise knowledge distillation for dense prediction", equations 4 to 6.

    Raises:
        RecipeError: vectors, different numbers of channels, a temperature that is not above 0, a mask that does not fit.
    """
    s, t, counts = facing(student, teacher, "channel-wise distillation", dim=dim, mask=mask)
    if s.shape[1] != t.shape[1]:
        raise RecipeError(
            f"channel-wise distillation compares channel by channel: the student's tensor has {s.shape[1]} of them, the "
            f"teacher's {t.shape[1]}. Give the term a bridge, or both models the names of their classes."
        )
    valid = None
    if counts is not None:
        s, t = (torch.where(counts.unsqueeze(1), x, -math.inf) for x in (s, t))
        valid = counts.any(1)
    per_channel = kl(s, t, temperature=temperature, scale=scale, mask=None if valid is None else _wide(valid, s))
    return finished(per_channel.mean(1), valid, weight)


def _wide(valid: Bool[Tensor, "batch"], x: Tensor) -> Bool[Tensor, "batch channels"]:
    return valid.unsqueeze(1).expand(x.shape[:2])
