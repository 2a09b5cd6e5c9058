"""Augmented data that a generator is told of, so that it learns from them and does not make them (Karras et al. 2022, appendix F.2).

Every sample is mirrored, turned, zoomed and shifted by numbers of its own, most of which are 0. The numbers are conditions of
the network; sampled, it is told zeros, which stand for data as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional as F

from limbeck.diffusion.noise import wide
from limbeck.errors import RecipeError

PerSample = Float[Tensor, "batch"]
Numbers = Mapping[str, PerSample]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Augmentation:
    """How far samples are moved, each kind with probability `chance` (EDM: 0.12); 0 leaves a kind out.

    Attributes:
        mirror: whether left and right (points: the first coordinate's sign) may be exchanged.
        turn: up to so many full turns either way, in [0, 0.5].
        zoom: up to 2^zoom times as large, or as small.
        shift: up to this share of the width and height either way (points: this far).
    """

    chance: Annotated[float, Field(ge=0, le=1)] = 0.12
    mirror: bool = True
    turn: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    zoom: Annotated[float, Field(ge=0)] = 0.2
    shift: Annotated[float, Field(ge=0)] = 0.125

    @property
    def most(self) -> dict[str, float]:
        """The kinds in use, by the names of their numbers, and the largest of each."""
        ends = {"mirror": float(self.mirror), "turn": self.turn, "zoom": self.zoom}
        ends |= {"shift_x": self.shift, "shift_y": self.shift}
        return {name: end for name, end in ends.items() if end and self.chance}

    def draw(self, uniform: Callable[[], PerSample]) -> dict[str, PerSample]:
        """A number per sample and kind, evenly from [-most, most] (mirrored: 1), or 0; `uniform` gives numbers in [0, 1)."""
        found = {}
        for name, most in self.most.items():
            used = uniform() < self.chance
            found[name] = used.float() if name == "mirror" else torch.where(used, most * (2 * uniform() - 1), 0.0)
        return found


def refuse_unmoved(x: Float[Tensor, "batch ..."]) -> None:
    """Refuse what `moved` cannot move.

    Raises:
        RecipeError: neither pictures nor points.
    """
    if x.dim() != 4 and not (x.dim() == 2 and x.shape[1] > 1):
        raise RecipeError(
            f"samples of shape {list(x.shape[1:])} are neither pictures [channels, height, width] nor points of two or more dimensions, "
            "and nothing else can be mirrored, turned, zoomed and shifted here. Set method.augment=null"
        )


def moved(x: Float[Tensor, "batch ..."], numbers: Numbers) -> Float[Tensor, "batch ..."]:
    """x' = 2^zoom R(turn) M x + shift, M the mirror, of what pictures [B, C, H, W] show, about their middle, or of points [B, D], D >= 2.

    Pictures: x to the right, y down, read between pixels (bilinear), reflected at the edges. Of points the first two coordinates
    are moved. Samples whose numbers are 0 stay as they are, to the bit.

    Raises:
        RecipeError: neither pictures nor points.
    """
    if not numbers:
        return x
    refuse_unmoved(x)
    kind = x.dtype if x.dtype == torch.float64 else torch.float32
    none = torch.zeros(len(x), dtype=kind, device=x.device)
    mirror, turn, zoom, right, down = (
        numbers.get(name, none).to(none) for name in ("mirror", "turn", "zoom", "shift_x", "shift_y")
    )
    angle, factor, sign = 2 * math.pi * turn, 2.0**zoom, 1 - 2 * mirror
    sin, cos = angle.sin(), angle.cos()
    matrix = torch.stack([factor * cos * sign, -factor * sin, factor * sin * sign, factor * cos], 1).view(-1, 2, 2)
    shift = torch.stack([right, down], 1)
    if x.dim() == 2:
        found = torch.cat([(matrix @ x[:, :2, None].to(kind)).squeeze(2) + shift, x[:, 2:].to(kind)], 1)
    else:  # the pixel at p shows what stood at matrix^-1 (p - shift); grids count each side from -1 to 1
        sides = torch.tensor([x.shape[3], x.shape[2]], dtype=kind, device=x.device)
        back = torch.linalg.inv(matrix) * sides / sides[:, None]
        theta = torch.cat([back, -back @ (2 * shift).unsqueeze(2)], 2)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        found = F.grid_sample(x.to(kind), grid, padding_mode="reflection", align_corners=False)
    touched = torch.stack([mirror, turn, zoom, right, down], 1).ne(0).any(1)
    return torch.where(wide(touched, x) > 0, found.to(x.dtype), x)
