"""Variational information: how likely the teacher's feature is, given the student's."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import channels_of
from limbeck.losses.features import _kept, _over_positions

__all__ = ["variational_information"]


def variational_information(
    student: Float[Tensor, "batch ..."],
    teacher: Float[Tensor, "batch ..."],
    *,
    variance: Float[Tensor, "channels"],
    dim: int | None = None,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """Mean over channels and positions of ((t - s)^2 / v_c + log v_c) / 2, v_c the variance of channel c.

    The negative log likelihood of t under a normal distribution of mean s and variance v (without log(2 pi) / 2), an
    upper bound of minus the mutual information. May be negative. For given s and t it is least where v_c is the mean
    squared error of channel c.

    Args:
        student: what is predicted of the teacher's feature: maps, tokens or vectors (`dim` says where the channels are).
        teacher: the feature itself, of the same shape.
        variance: one number above 0 per channel.
        mask: bool, [batch, *positions] or [batch]: positions that count.
        weight: [batch], multiplies.

    Source: Ahn et al. 2019, "Variational information distillation for knowledge transfer", equations 3 and 4.
    """
    at = channels_of(student, dim)
    student, teacher = _kept(student, teacher, at, mask)
    if variance.shape != (student.shape[at],):
        raise RecipeError(
            f"variational-information was given a variance of shape {list(variance.shape)}; needed is one number per "
            f"channel, [{student.shape[at]}]."
        )
    variance = variance.to(student.dtype).view(-1, *[1] * (student.dim() - 1 - at))
    values = ((teacher - student).square() / variance + torch.log(variance)) / 2
    return _over_positions(values.mean(at), mask, weight)
