"""How likely a step of a sampler was, and which of two samples is preferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from limbeck.diffusion.noise import wide
from limbeck.errors import RecipeError
from limbeck.losses.scores import per_sample

Values = Float[Tensor, "batch ..."]
PerSample = Float[Tensor, "batch"]


def log_density(x: Values, mean: Values, sigma: PerSample) -> PerSample:
    """log N(x; mean, sigma^2 I), over the number of dimensions."""
    s = wide(sigma, x)
    return per_sample(-((x - mean) / s).square() / 2 - s.log() - math.log(2 * math.pi) / 2)


def dominates(a: Float[Tensor, "batch *rewards"], b: Float[Tensor, "batch *rewards"]) -> PerSample:
    """1 where `a` is at least as good in every reward and better in one, -1 where `b` is, 0 otherwise (Pareto)."""
    a, b = (r.unsqueeze(1) if r.dim() == 1 else r for r in (a.float(), b.float()))
    won, lost = (((p >= q).all(1) & (p > q).any(1)).float() for p, q in ((a, b), (b, a)))
    return won - lost


def scored(
    reward: Callable[[Values, Mapping[str, Any]], Tensor], samples: Values, batch: Mapping[str, Any]
) -> Float[Tensor, "batch rewards"]:
    """What somebody's own `reward(samples, batch)` says of samples: a number each, or several.

    Raises:
        RecipeError: it gives anything else.
    """
    found = reward(samples, batch)
    if not isinstance(found, Tensor) or found.dim() not in (1, 2) or len(found) != len(samples):
        said = f"{type(found).__name__} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise RecipeError(
            f"method.reward ({getattr(reward, '__name__', type(reward).__name__)}) gave a {said} for {len(samples)} samples. Needed is a tensor, "
            "[batch] or [batch, rewards]: one number per sample, or several."
        )
    return found.unsqueeze(1) if found.dim() == 1 else found
