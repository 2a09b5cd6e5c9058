"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps, eps ~ N(0, I), with noise that grows with t and none at t = 0.

Times are the schedule's own (`VP`: steps, `VE`: sigma, `Flow`: [0, 1]); a share in [0, 1] of the way to the noisiest one
means the same in all of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.choices import choose, spelled
from limbeck.errors import RecipeError

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
Times = Float[Tensor, "*batch"]


class Noise:
    """What the three schedules have in common. All functions take and give tensors of times of any shape."""

    @property
    def first(self) -> float:
        """The least time above 0 that is of use: noise below it is none to speak of."""
        raise NotImplementedError

    @property
    def last(self) -> float:
        """The noisiest time."""
        raise NotImplementedError

    def alpha(self, t: Times) -> Times:
        """What is left of the data."""
        raise NotImplementedError

    def sigma(self, t: Times) -> Times:
        """The standard deviation of the noise."""
        raise NotImplementedError

    def at(self, share: Times) -> Times:
        """The time at a share in [0, 1] of the way from no noise to the most; rising, onto [0 or first, last]."""
        raise NotImplementedError

    def share(self, t: Times) -> Times:
        """The share of a time: the inverse of `at`."""
        raise NotImplementedError

    def fed(self, t: Times) -> Times:
        """What a network that was trained with this schedule is given as the time."""
        return t

    def snr(self, t: Times) -> Times:
        """alpha^2 / sigma^2."""
        return self.alpha(t).square() / self.sigma(t).square()

    def renoise(
        self, x0: Float[Tensor, "batch ..."], t: Times, noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """alpha(t) x0 + sigma(t) noise, a time per sample."""
        return wide(self.alpha(t), x0) * x0 + wide(self.sigma(t), x0) * noise

    def further(
        self, x: Float[Tensor, "batch ..."], s: Times, t: Times, noise: Float[Tensor, "batch ..."]
    ) -> Float[Tensor, "batch ..."]:
        """From noise level s to t >= s: (alpha_t / alpha_s) x_s + sqrt(sigma_t^2 - (alpha_t sigma_s / alpha_s)^2) noise."""
        ratio = self.alpha(t) / self.alpha(s)
        spread = (self.sigma(t).square() - (ratio * self.sigma(s)).square()).clamp(min=0).sqrt()
        return wide(ratio, x) * x + wide(spread, x) * noise

    def grid(self, steps: int, start: float = 1.0) -> Float[Tensor, "steps+1"]:
        """Times of a sampler, from the share `start` down to 0, evenly spread over the shares (`trailing` spacing)."""
        shares = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
        return torch.cat([self.at(shares[:-1]), shares.new_zeros(1)]).float()

    def nearest(self, t: Times) -> Times:
        """The nearest time that a network may have been trained at; this one, unless times are discrete."""
        return t

    def spec(self) -> dict[str, Any]:
        """How a recipe spells it, every default written out."""
        return spelled(self, KNOWN)


def wide(values: Times, x: Float[Tensor, "batch ..."]) -> Tensor:
    """One number per sample with as many dimensions as `x`, in the type of `x` (fp32 for half precision)."""
    kind = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    return values.to(x.device, kind).reshape(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True, config=_CONFIG)
class VP(Noise):
    """Variance-preserving: alpha^2 + sigma^2 = 1, in `steps` trained steps; time k is step k - 1 of the papers, 0 no noise.

    log alpha^2 is a straight line between the steps, which is the SDE with piecewise constant beta. `betas`: `linear`
    from `start` to `end` (Ho et al. 2020), `scaled` (linear in the root, Stable Diffusion), `cosine` (Nichol and Dhariwal
    2021, betas cut at 0.999), or the numbers themselves. `zero_terminal`: rescaled so that nothing of the data is left
    at the last step (Lin et al. 2023, algorithm 1); an epsilon head then has no answer there.
    """

    betas: Literal["linear", "scaled", "cosine"] | tuple[float, ...] = "linear"
    steps: Annotated[int, Field(ge=2)] = 1000
    start: float = 1e-4
    end: float = 0.02
    zero_terminal: bool = False

    @property
    def first(self) -> float:
        return 1.0

    @property
    def last(self) -> float:
        return float(len(self._table()) - 1)

    def _table(self, device: str = "cpu") -> Float[Tensor, "steps+1"]:
        """log alpha^2 at times 0 to last."""
        return _log_alpha_squared(self.betas, self.steps, self.start, self.end, self.zero_terminal, device)

    def _log(self, t: Times) -> Float[Tensor, "..."]:
        table = self._table(str(t.device))
        t = t.to(torch.float64).clamp(0, len(table) - 1)
        low = t.floor().long().clamp(max=len(table) - 2)
        way = t - low
        mixed = table[low] * (1 - way) + table[low + 1].clamp(min=-1e30) * way
        return torch.where(way == 1, table[low + 1], mixed)

    def alpha(self, t: Times) -> Times:
        return (self._log(t) / 2).exp().to(_floating(t))

    def sigma(self, t: Times) -> Times:
        return (-torch.expm1(self._log(t))).sqrt().to(_floating(t))

    def at(self, share: Times) -> Times:
        return share * self.last

    def share(self, t: Times) -> Times:
        return t / self.last

    def fed(self, t: Times) -> Times:
        return (t - 1).clamp(min=0)

    def nearest(self, t: Times) -> Times:
        return t.round().clamp(1, self.last)


@lru_cache
def _log_alpha_squared(
    betas: str | tuple[float, ...], steps: int, start: float, end: float, zero_terminal: bool, device: str
) -> Float[Tensor, "steps+1"]:
    if not isinstance(betas, str):
        b = torch.tensor(betas, dtype=torch.float64)
    elif betas == "linear":
        b = torch.linspace(start, end, steps, dtype=torch.float64)
    elif betas == "scaled":
        b = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    else:
        bar = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * math.pi / 2) ** 2
        b = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    log = torch.log1p(-b).cumsum(0)
    if zero_terminal:
        root = (log / 2).exp()
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        log = 2 * root.log()
    return torch.cat([log.new_zeros(1), log]).to(device)  # once per device


@dataclass(frozen=True, config=_CONFIG)
class VE(Noise):
    """Variance-exploding: alpha = 1, sigma = t in [least, most]; shares run along Karras' grid.

    at(u) = (least^(1/rho) + u (most^(1/rho) - least^(1/rho)))^rho. Networks are fed log(sigma) / 4.
    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5, table 1.
    """

    least: Annotated[float, Field(gt=0)] = 0.002
    most: Annotated[float, Field(gt=0)] = 80.0
    rho: Annotated[float, Field(gt=0)] = 7.0

    @property
    def first(self) -> float:
        return self.least

    @property
    def last(self) -> float:
        return self.most

    def alpha(self, t: Times) -> Times:
        return torch.ones_like(t)

    def sigma(self, t: Times) -> Times:
        return t

    def at(self, share: Times) -> Times:
        low, high = self.least ** (1 / self.rho), self.most ** (1 / self.rho)
        return (low + share * (high - low)) ** self.rho

    def share(self, t: Times) -> Times:
        low, high = self.least ** (1 / self.rho), self.most ** (1 / self.rho)
        return (t.clamp(min=self.least) ** (1 / self.rho) - low) / (high - low)

    def fed(self, t: Times) -> Times:
        return t.clamp(min=self.least).log() / 4

    def grid(self, steps: int, start: float = 1.0) -> Float[Tensor, "steps+1"]:
        """The grid of the paper: the last step but one is `least`, then 0."""
        shares = torch.linspace(start, 0, steps, dtype=torch.float64)
        return torch.cat([self.at(shares), shares.new_zeros(1)]).float()


@dataclass(frozen=True, config=_CONFIG)
class Flow(Noise):
    """Straight lines between data and noise (rectified flow): alpha = 1 - t, sigma = t, t in [0, 1].

    `shift` s moves shares towards noise, at(u) = s u / (1 + (s - 1) u), as large images want it (Esser et al. 2024,
    equation 23). Networks are fed `scale` t (diffusers: 1000).
    """

    shift: Annotated[float, Field(gt=0)] = 1.0
    scale: Annotated[float, Field(gt=0)] = 1.0

    @property
    def first(self) -> float:
        return 1e-3

    @property
    def last(self) -> float:
        return 1.0

    def alpha(self, t: Times) -> Times:
        return 1 - t

    def sigma(self, t: Times) -> Times:
        return t

    def at(self, share: Times) -> Times:
        return self.shift * share / (1 + (self.shift - 1) * share)

    def share(self, t: Times) -> Times:
        return t / (self.shift - (self.shift - 1) * t)

    def fed(self, t: Times) -> Times:
        return self.scale * t


def _floating(t: Tensor) -> torch.dtype:
    return t.dtype if t.is_floating_point() else torch.float32


KNOWN: dict[str, type[Noise]] = {"vp": VP, "ve": VE, "flow": Flow}


def to_noise(given: Any) -> Noise:
    """A schedule out of a schedule, a name, or `{use: vp, betas: cosine}`.

    Raises:
        RecipeError: neither of these, or an unknown name or option.
    """
    return choose(given, KNOWN, Noise, "noise")


def refuse_uncovered(noise: Noise, start: float, of: Noise, whose: str) -> None:
    """Refuse a teacher whose noise does not reach as far as the student's start.

    Raises:
        RecipeError: the student begins with a larger sigma / alpha than the teacher has seen.
    """

    def level(n: Noise, t: float) -> float:
        time = torch.tensor(t, dtype=torch.float64)
        return float(n.sigma(time) / n.alpha(time))

    wanted, there = level(noise, start), level(of, of.last)
    if wanted > there * (1 + 1e-6):
        raise RecipeError(
            f"the student begins at a noise level (sigma / alpha) of {wanted:.4g}, and the {whose} has been trained up to {there:.4g}: it "
            "would be asked about noise it has never seen. Begin lower (method.start, a share of the range), or give both the same noise."
        )


NoiseOption = Annotated[Any, BeforeValidator(to_noise), PlainSerializer(lambda noise: noise.spec())]
