"""Pictures as they are compared: of one size, in [0, 1], three channels, as many levels as a file of them has."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError

Pictures = Float[Tensor, "batch channels high wide"]
LARGEST, THUMBNAIL = 32, 16


def as_large_as(pictures: Tensor, like: Tensor) -> Tensor:
    """Pictures brought to the height and width of others (bilinear over the whole footprint); all else stays as it is."""
    if pictures.dim() != 4 or like.dim() != 4 or pictures.shape[-2:] == like.shape[-2:]:
        return pictures
    return F.interpolate(pictures, size=like.shape[-2:], mode="bilinear", align_corners=False, antialias=True)


def thumbnails(pictures: Tensor) -> Tensor:
    """Pictures with a side above 32 as means over 16 x 16 places: more numbers per sample than samples tell little, and do not fit."""
    if pictures.dim() != 4 or max(pictures.shape[-2:]) <= LARGEST:
        return pictures
    return F.adaptive_avg_pool2d(pictures, THUMBNAIL)


def looked_at(pictures: Tensor, signed: bool, check: str) -> Pictures:
    """Pictures as a judge of pictures is shown them: in [0, 1] and in 256 levels, grey ones three times.

    Args:
        signed: they are in [-1, 1].

    Raises:
        RecipeError: they are no pictures.
    """
    if pictures.dim() != 4 or pictures.shape[1] not in (1, 3):
        raise RecipeError(
            f"the check {check} looks at pictures of one or three channels, and samples here have the shape {list(pictures.shape[1:])}. "
            "Leave it out of evaluate."
        )
    pictures = (pictures.float() + 1) / 2 if signed else pictures.float()
    return (pictures.clamp(0, 1) * 255).round().div(255).expand(-1, 3, -1, -1)
