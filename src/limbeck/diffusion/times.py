"""How times are drawn in training: distributions over the shares (or noise levels) of a schedule."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.choices import choose, spelled
from limbeck.diffusion.noise import Noise

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
Share = Annotated[float, Field(ge=0, le=1)]


class TimeDistribution:
    """From uniform numbers in [0, 1), one per sample, to times. Your own: derive a pydantic dataclass, name it `module:Class`."""

    def __call__(self, noise: Noise, uniform: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """Times of this schedule, by the inverse of the distribution function."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """How a recipe spells it, every default written out."""
        return spelled(self, KNOWN)


@dataclass(frozen=True, config=_CONFIG)
class Uniform(TimeDistribution):
    """Shares uniform in [low, high]: for VP uniform steps, for VE Karras' grid, for flows uniform times (shifted as the grid is)."""

    low: Share = 0.0
    high: Share = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> Uniform:
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not lie above high={self.high}.")
        return self

    def __call__(self, noise: Noise, uniform: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return _kept(noise, noise.at(self.low + (self.high - self.low) * uniform))


@dataclass(frozen=True, config=_CONFIG)
class LogitNormal(TimeDistribution):
    """logit(share) ~ N(mean, std^2): most weight in the middle (Esser et al. 2024, equation 19)."""

    mean: float = 0.0
    std: Annotated[float, Field(gt=0)] = 1.0

    def __call__(self, noise: Noise, uniform: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        return _kept(noise, noise.at(torch.sigmoid(self.mean + self.std * _normal(uniform))))


@dataclass(frozen=True, config=_CONFIG)
class LogNormal(TimeDistribution):
    """log(sigma / alpha) ~ N(mean, std^2), cut to the schedule's range (Karras et al. 2022, table 1: -1.2, 1.2)."""

    mean: float = -1.2
    std: Annotated[float, Field(gt=0)] = 1.2

    def __call__(self, noise: Noise, uniform: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        level = (self.mean + self.std * _normal(uniform)).exp()
        return _kept(noise, time_of_level(noise, level))


def time_of_level(noise: Noise, level: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """The time at which sigma / alpha has this value, by bisection in the shares; cut to the schedule's range."""
    low, high = torch.zeros_like(level, dtype=torch.float64), torch.ones_like(level, dtype=torch.float64)
    for _ in range(52):
        middle = (low + high) / 2
        t = noise.at(middle)
        below = noise.sigma(t) < level * noise.alpha(t)
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return noise.at((low + high) / 2).to(level.dtype)


def _kept(noise: Noise, t: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    """Inside the range on which networks are trained, at times that they know."""
    return noise.nearest(t.clamp(noise.first, noise.last))


def _normal(uniform: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
    return torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9)).to(uniform.dtype)


KNOWN: dict[str, type[TimeDistribution]] = {"uniform": Uniform, "logit-normal": LogitNormal, "log-normal": LogNormal}


def to_times(given: Any) -> TimeDistribution:
    """A distribution out of one, a name, `{use: uniform, low: 0.02}`, or [low, high] for uniform shares.

    Raises:
        RecipeError: neither of these, or an unknown name or option.
    """
    if isinstance(given, (list, tuple)) and len(given) == 2:
        given = {"use": "uniform", "low": given[0], "high": given[1]}
    return choose(given, KNOWN, TimeDistribution, "times")


TimesOption = Annotated[
    Any, BeforeValidator(to_times), PlainSerializer(lambda times: times.spec()), Field(validate_default=True)
]
