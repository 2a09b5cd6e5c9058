"""Divergences of scores whose gradient reaches a generator through its samples, the teacher and the critic alike.

All take x0 (samples, with a graph), F and R (what critic and teacher denoise of x_t, with a graph to x_t, and through it to
x0), and give one value per sample, a mean over its dimensions. Only the gradient means something.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from limbeck.diffusion.noise import wide
from limbeck.losses.scores import per_sample

Values = Float[Tensor, "batch ..."]
PerSample = Float[Tensor, "batch"]


def score_identity(x0: Values, fake: Values, real: Values, share: float = 1.0) -> PerSample:
    """(R - F) . ((R - x0) - a (R - F)), a = `share`, mean over dimensions.

    With the exact F of the samples, twice this has at a = 1 the gradient of E |R - F|^2 at the samples held where they are,
    and at a = 1/2 the whole gradient.

    Source: Zhou et al. 2024, "Score identity Distillation", ICML, equation 23.
    """
    return per_sample((real - fake) * ((real - x0) - share * (real - fake)))


def score_implicit(x0: Values, fake: Values, real: Values, level: PerSample, c: float | None = None) -> PerSample:
    """-d'(y) . r, with y = (F - R) / l, r = (F - x0) / l, l = sigma / alpha = `level`, mean over dimensions.

    y = sigma (s_F - s_R) and r = sigma (s_F - grad log q(x_t | x0)). d(y) = y . y without `c`; with it the pseudo-Huber distance
    n (sqrt(y . y / n + c^2) - c) of the n dimensions together, whose d' = y / sqrt(y . y / n + c^2), so y is normalised.
    With the exact F its mean has the gradient of the divergence E d(y) / n, the samples of the expectation held where they are.

    Source: Luo et al. 2024, "One-Step Diffusion Distillation through Score Implicit Matching", theorem 3.1. The weight
    (scores times sigma) is our choice; c is c / sqrt(n) of the paper's.
    """
    l = wide(level, x0)  # noqa: E741
    y, r = (fake - real) / l, (fake - x0) / l
    if c is None:
        return -2 * per_sample(y * r)
    size = (per_sample(y.square()) + c**2).sqrt()
    return -per_sample(y * r) / size
