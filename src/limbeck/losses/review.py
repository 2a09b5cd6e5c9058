"""The distance of knowledge review: maps compared at full size and in ever coarser windows."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import finished, keep, paired

__all__ = ["hcl"]

_GRIDS = (4, 2, 1)


def hcl(
    student: Float[Tensor, "batch channels *positions"],
    teacher: Float[Tensor, "batch channels *positions"],
    *,
    mask: Bool[Tensor, "batch"] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """Hierarchical context loss: (d_0 + sum_i 2^-i d_i) / (1 + sum_i 2^-i), one value per sample.

    d_0 is the mean squared difference over all entries of the maps [batch, channels, height, width]; d_i that of the
    maps averaged over a grid of 4x4, 2x2 and 1x1 windows, of which only grids smaller than the height count (i = 1, 2,
    ... numbers those that do). Vectors [batch, channels] have d_0 alone. Gradients flow into both arguments; computed
    in fp32 (fp64 for fp64). `mask` (True counts) and `weight` are per sample.

    Averaging is linear, so one map of differences is averaged and not two maps; where the height and width are
    multiples of 4 each grid is made from the one before.

    Source: Chen et al. 2021, "Distilling knowledge via knowledge review", section 3.3; the weights from its code.

    Raises:
        RecipeError: different shapes, or neither maps nor vectors.
    """
    student, teacher = paired(student, teacher)
    if student.dim() not in (2, 4):
        raise RecipeError(
            f"hcl compares maps [batch, channels, height, width] or vectors [batch, channels]; given is {list(student.shape)}."
        )
    if mask is not None:  # cut before the difference: nan in a masked sample leaves no trace in the gradient
        student, teacher = (keep(x.flatten(1), mask, 1).view_as(x) for x in (student, teacher))
    apart = student - teacher
    values, total, share = _mean_square(apart), 1.0, 1.0
    if apart.dim() == 4:
        height, width = apart.shape[2:]
        nested = height % 4 == 0 and width % 4 == 0
        rest = apart
        for side in (grid for grid in _GRIDS if grid < height):
            rest = _averaged(rest if nested else apart, (side, min(side, width)))
            share /= 2
            values, total = values + share * _mean_square(rest), total + share
    return finished(values / total, mask, weight)


def _mean_square(x: Tensor) -> Float[Tensor, "batch"]:
    """Per sample. Against zero, for the fused difference has a backward pass of one sweep and `square` one of three."""
    return F.mse_loss(x, x.new_zeros(()).expand_as(x), reduction="none").flatten(1).mean(1)


def _averaged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over a grid of windows; where the grid divides the map, by plain pooling, which is much faster."""
    if size == (1, 1):
        return x.mean((2, 3), keepdim=True)
    if x.shape[2] % size[0] == 0 and x.shape[3] % size[1] == 0:
        return F.avg_pool2d(x, (x.shape[2] // size[0], x.shape[3] // size[1]))
    return F.adaptive_avg_pool2d(x, size)
