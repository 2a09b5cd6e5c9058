"""What a denoising network may predict, and how each is turned into every other.

All are linear in the data and the noise: with x_t = alpha x0 + sigma eps a head is y = a x0 + b eps,

    x0 (1, 0)   epsilon (0, 1)   score (0, -1 / sigma)   velocity (-1, 1)   v (-sigma, alpha)
    edm (l / (d r), -d / r) with l = sigma / alpha, d the data's standard deviation, r = sqrt(l^2 + d^2)

so that y and x_t together give x0 = (b x_t - sigma y) / (alpha b - sigma a), eps = (alpha y - a x_t) / (alpha b - sigma a).
For alpha = 1 - t, sigma = t, `velocity` is the flow's dx/dt; for alpha^2 + sigma^2 = 1, `v` is that of Salimans and Ho 2022.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import RecipeError, nearest

Head = Literal["x0", "epsilon", "score", "velocity", "v", "edm"]
HEADS = get_args(Head)
Values = Float[Tensor, "batch ..."]
DATA_STD = 0.5


def _edm(alpha: Tensor, sigma: Tensor, std: float) -> tuple[Tensor, Tensor]:
    """F of Karras et al. 2022, equation 7, of x_t / alpha at level sigma / alpha: D = c_skip x + c_out F."""
    level = sigma / alpha
    root = (level.square() + std**2).sqrt()
    return level / (std * root), -std / root


_PAIRS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "x0": lambda alpha, sigma, std: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    "epsilon": lambda alpha, sigma, std: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    "velocity": lambda alpha, sigma, std: (-torch.ones_like(alpha), torch.ones_like(alpha)),
    "v": lambda alpha, sigma, std: (-sigma, alpha),
    "edm": _edm,
}


def known_head(head: str) -> str:
    """The head itself.

    Raises:
        RecipeError: there is no such head.
    """
    if head not in HEADS:
        raise RecipeError(f"unknown head '{head}' of a denoising network. {nearest(head, HEADS)}")
    return head


def target_of(head: str, x0: Values, noise: Values, alpha: Tensor, sigma: Tensor, data_std: float = DATA_STD) -> Values:
    """What a head is trained towards: a x0 + b eps. `alpha` and `sigma` have the dimensions of `x0`, or are one number."""
    if head == "score":
        return -noise / sigma
    a, b = _PAIRS[known_head(head)](alpha, sigma, data_std)
    return a * x0 + b * noise


def convert(
    value: Values, x_t: Values, alpha: Tensor, sigma: Tensor, source: str, to: str, data_std: float = DATA_STD
) -> Values:
    """The head `to` out of the head `source` of the same noisy sample. The same head is given back as it is.

    Where it is not defined (noise out of an x0 head at sigma = 0; x0 out of an epsilon head at alpha = 0) the result is not finite.
    """
    if known_head(source) == known_head(to):
        return value
    if source == "score":
        value, source = -sigma * value, "epsilon"
        if to == source:
            return value
    a, b = _PAIRS[source](alpha, sigma, data_std)
    det = alpha * b - sigma * a
    if to == "x0":
        return (b * x_t - sigma * value) / det
    noise = (alpha * value - a * x_t) / det
    if to == "epsilon":
        return noise
    if to == "score":
        return -noise / sigma
    return target_of(to, (b * x_t - sigma * value) / det, noise, alpha, sigma, data_std)


@dataclass(frozen=True)
class Prediction:
    """What a network said of `x_t`, readable as every head. `alpha` and `sigma` have the dimensions of `x_t`; at least fp32."""

    value: Values
    head: str
    x_t: Values
    alpha: Tensor
    sigma: Tensor
    data_std: float = DATA_STD

    def as_head(self, head: str) -> Values:
        """This prediction as another head."""
        return convert(self.value, self.x_t, self.alpha, self.sigma, self.head, head, self.data_std)

    @property
    def x0(self) -> Values:
        """The denoised sample, E[x0 | x_t]."""
        return self.as_head("x0")

    @property
    def epsilon(self) -> Values:
        """The noise, (x_t - alpha x0) / sigma."""
        return self.as_head("epsilon")

    @property
    def score(self) -> Values:
        """grad log p_t(x_t) = (alpha x0 - x_t) / sigma^2."""
        return self.as_head("score")

    @property
    def velocity(self) -> Values:
        """epsilon - x0; of a flow dx/dt."""
        return self.as_head("velocity")

    @property
    def v(self) -> Values:
        """alpha epsilon - sigma x0."""
        return self.as_head("v")

    def detach(self) -> Prediction:
        """The same without a graph."""
        return replace(self, value=self.value.detach(), x_t=self.x_t.detach())
