"""Pictures as they are compared: of one size, in [0, 1], three channels, as many levels as a file of them has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.data.collate import pick
from limbeck.engine.processes import World
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


class Judge:
    """Something that looks at pictures, a batch at a time, and has figures of them in the end.

    Args:
        samples: of how many generated pictures; None: one for each row. They are those of the first rows, in however many processes.
        batch_size: how many are looked at at once.
    """

    check: ClassVar[str]

    def __init__(self, samples: int | None = None, batch_size: int = 64) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.made: list[Tensor] = []
        self.real: list[Tensor] = []
        self.ids: list[Tensor] = []
        self.signed: bool | None = None

    def look(self, pictures: Pictures, batch: Mapping[str, Any]) -> Float[Tensor, "batch ..."]:
        """What is kept of pictures in [0, 1] and their rows."""
        raise NotImplementedError

    def figures(self, world: World) -> tuple[dict[str, float], dict[str, Any]]:
        """Figures, and facts about how they came about (every process must call it)."""
        raise NotImplementedError

    def see(self, made: Tensor, real: Tensor | None, batch: Mapping[str, Any]) -> None:
        """Look at what was generated for these rows, and the first time at the real ones."""
        if real is not None:
            self.signed = bool(real.min() < -0.05) if self.signed is None else self.signed
            self.real.append(self._looked(as_large_as(real, made), batch))
        if self.samples is None or sum(map(len, self.made)) < self.samples:
            self.made.append(self._looked(made, batch))
            self.ids.append(batch["id"].cpu())

    def gathered(self, world: World) -> tuple[Tensor, Tensor]:
        """What all processes kept: of generated pictures, as many as are wanted in order of their rows, and of real ones."""
        made, ids, real = (
            world.gather_rows(torch.cat(kept).to(world.device))[0].cpu() for kept in (self.made, self.ids, self.real)
        )
        return made[ids.argsort()][: self.samples], real

    def _looked(self, pictures: Tensor, batch: Mapping[str, Any]) -> Tensor:
        pictures = looked_at(pictures, bool(self.signed), self.check)
        pieces = torch.arange(len(pictures)).split(self.batch_size)
        return torch.cat([self.look(pictures[rows], pick(dict(batch), rows)).cpu() for rows in pieces])
