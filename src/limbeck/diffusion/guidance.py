"""Classifier-free guidance: away from what is said without the condition (Ho and Salimans 2022), in the scale of Imagen.

w = 1 is no guidance, w = 0 the unconditional answer: R_w = R(0) + w (R(c) - R(0)). Others write cond + w' (cond - uncond):
w = w' + 1. Every head is linear in the others, so it does not matter in which one this is done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, ConfigDict, PlainSerializer
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.diffusion.noise import wide
from limbeck.diffusion.predictors import Prediction
from limbeck.errors import RecipeError


def guide(conditional: Prediction, unconditional: Prediction, scale: Float[Tensor, "batch"] | float) -> Prediction:
    """R(0) + w (R(c) - R(0)), one scale or one per sample. At w = 1 the conditional answer, to the bit."""
    if isinstance(scale, (int, float)):
        scale = torch.full((len(conditional.value),), float(scale), device=conditional.value.device)
    w = wide(scale, conditional.value)
    mixed = unconditional.value + w * (conditional.value - unconditional.value)
    return replace(conditional, value=torch.where(w == 1, conditional.value, mixed))


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Guidance:
    """A scale, or a range from which one is drawn per sample. In a recipe: a number, or [low, high]."""

    low: float = 1.0
    high: float = 1.0

    def draw(self, uniform: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """A scale per sample out of uniform numbers in [0, 1)."""
        return self.low + (self.high - self.low) * uniform

    @property
    def none(self) -> bool:
        """Whether it changes nothing."""
        return self.low == self.high == 1

    def spec(self) -> float | list[float]:
        """How a recipe spells it."""
        return self.low if self.low == self.high else [self.low, self.high]


def to_guidance(given: Any) -> Guidance:
    """Guidance out of a number, [low, high], or itself.

    Raises:
        RecipeError: neither of these, or a range whose ends are in the wrong order.
    """
    if isinstance(given, Guidance):
        return given
    ends = [given, given] if isinstance(given, (int, float)) and not isinstance(given, bool) else given
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or not all(isinstance(e, (int, float)) for e in ends):
        raise RecipeError(f"guidance {given!r}: needed is a scale (1 is none), or a range [low, high] to draw it from.")
    if ends[0] > ends[1]:
        raise RecipeError(f"guidance {given!r}: the range begins above its end; write [{ends[1]}, {ends[0]}].")
    return Guidance(float(ends[0]), float(ends[1]))


GuidanceOption = Annotated[Any, BeforeValidator(to_guidance), PlainSerializer(lambda guidance: guidance.spec())]
