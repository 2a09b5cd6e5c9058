"""Any signal as a map [batch, channels, height, width], for bridges that are made of convolutions."""

from __future__ import annotations

import math

from limbeck.bridges.base import Bridge, Identity, Shape
from limbeck.bridges.tokens import Spread, TokensToMap
from limbeck.errors import RecipeError


def as_map(shape: Shape) -> tuple[Bridge, tuple[int, int, int]]:
    """A bridge without parameters from a signal of this shape to a map, and the map's shape.

    A map stays what it is, a vector becomes a map of one pixel, tokens that are a square (with or without one CLS token
    before them, which is left out) are laid out row by row.

    Raises:
        RecipeError: tokens that are no square, or a signal of another kind.
    """
    if len(shape) == 3:
        channels, height, width = shape
        return Identity(), (channels, height, width)
    if len(shape) == 1:
        return Spread((1, 1), channels=1), (shape[0], 1, 1)
    if len(shape) == 2:
        for extra in (0, 1):
            side = math.isqrt(max(shape[0] - extra, 0))
            if side**2 == shape[0] - extra and side > extra:
                return TokensToMap((side, side), extra=extra), (shape[1], side, side)
        raise _no_map(shape, f"{shape[0]} tokens are no square, so nothing says where each lies")
    raise _no_map(shape, f"a signal of {len(shape)} dimensions is neither a map, a vector nor tokens")


def _no_map(shape: Shape, why: str) -> RecipeError:
    return RecipeError(
        f"a signal of shape {list(shape)} (of one sample) is not read as a map: {why}. Name another place."
    )
