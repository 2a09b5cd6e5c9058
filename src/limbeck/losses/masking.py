"""What all losses share: fp32 at least, masks before any exponential, weights at the end."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError


def widened(x: Tensor) -> Float[Tensor, "..."]:
    """The dtype that losses are computed in: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def paired(student: Tensor, teacher: Tensor) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Both widened, to float64 if one of them is.

    Raises:
        RecipeError: different shapes. They are never broadcast: [batch, 1] against [batch] would give [batch, batch].
    """
    if student.shape != teacher.shape:
        raise RecipeError(
            f"the student's tensor has shape {list(student.shape)}, the teacher's {list(teacher.shape)}; a loss "
            "compares equal shapes. Give the term a bridge, or both models the names of their classes."
        )
    student, teacher = widened(student), widened(teacher)
    if student.dtype != teacher.dtype:
        student, teacher = student.double(), teacher.double()
    return student, teacher


def aligned(x: Tensor, shape: torch.Size, what: str) -> Tensor:
    """`x` with dimensions of size 1 at its end, so that one value per sample also goes with values per token.

    Raises:
        RecipeError: `x` has neither the values' shape nor the first dimensions of it.
    """
    if x.shape != shape[: x.dim()] or x.dim() == 0:
        raise RecipeError(
            f"the {what} of a loss has shape {list(x.shape)}; needed is {list(shape)}, or the first dimensions of it."
        )
    return x.view(*x.shape, *[1] * (len(shape) - x.dim()))


def keep(x: Tensor, mask: Bool[Tensor, "..."] | None, dim: int) -> Tensor:
    """`x` with zeros where `mask` (the shape of `x` without `dim`) is False.

    `where` cuts the gradient there to exactly zero, also when the entry is nan or infinite; multiplying would not.
    """
    if mask is None:
        return x
    dim = dim % x.dim()
    shape = x.shape[:dim] + x.shape[dim + 1 :]
    return torch.where(aligned(mask.bool(), shape, "mask").unsqueeze(dim), x, 0)


def finished(values: Tensor, mask: Tensor | None, weight: Tensor | None) -> Tensor:
    """The values times `weight`, and exactly zero where `mask` is False, whatever the weight holds there."""
    mask = aligned(mask.bool(), values.shape, "mask") if mask is not None else None
    if weight is not None:
        weight = aligned(weight, values.shape, "weight").to(values.dtype)
        values = values * (weight if mask is None else torch.where(mask, weight, 0))
    return values if mask is None else torch.where(mask, values, 0)
