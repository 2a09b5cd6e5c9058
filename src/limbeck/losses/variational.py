"""Variational information: how likely the teacher's feature is, given the student's."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import columns, spread
from limbeck.losses.features import mse
from limbeck.losses.masking import finished, paired

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
    counts = spread(mask, student.shape, dim) if mask is not None else None
    s, t = (columns(x, dim=dim, mask=mask) for x in paired(student, teacher))
    if variance.shape != s.shape[1:2]:
        raise RecipeError(
            f"variational-information was given a variance of shape {list(variance.shape)}; needed is one number per "
            f"channel, [{s.shape[1]}]."
        )
    variance = variance.to(s.dtype)
    deviation = variance.sqrt()[:, None]
    values = (mse(s / deviation, t / deviation, dim=1, mask=counts) + variance.log().mean()) / 2
    return finished(values, None if counts is None else counts.any(1), weight)
