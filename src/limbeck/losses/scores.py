"""What score distillation is made of: a gradient written into a loss, its normaliser, denoising errors and their weights.

All give one value per sample; an error is a mean over the dimensions of a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["pseudo_huber"]

Values = Float[Tensor, "batch ..."]
PerSample = Float[Tensor, "batch"]
Weighting = Literal["head", "x0", "epsilon", "velocity", "v", "edm", "min-snr"]
Distance = Literal["l2", "huber"]


def per_sample(values: Values) -> PerSample:
    """The mean over everything but the batch."""
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def inject(x: Values, gradient: Values) -> PerSample:
    """A loss whose gradient with respect to x is `gradient`, over the number of dimensions: (x - sg[x - g])^2 / 2, mean.

    The mean of this over a batch has d/dx = g / numel exactly. Its value is half the mean square of g, and means nothing.
    """
    return per_sample((x - (x - gradient).detach()).square() / 2)


def normaliser(x0: Values, real: Values, least: float = 1e-6) -> Values:
    """Per sample the mean absolute distance |x0 - R|, at least `least`, without a graph; as many dimensions as x0 has.

    Source: Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation", equation 8.
    """
    apart = (x0.detach() - real.detach()).float() if x0.dtype != torch.float64 else (x0 - real).detach()
    return per_sample(apart.abs()).clamp(min=least).reshape(-1, *[1] * (x0.dim() - 1))


def distribution_matching(x0: Values, fake: Values, real: Values) -> Values:
    """The gradient of distribution matching, (F - R) / nu, nu as `normaliser` gives it; no graph.

    Not finite where a network's answer is not: published code puts zero there, and a student of a broken teacher then stands still unseen.

    Args:
        x0: the student's samples.
        fake: the denoised x_t of the network that follows the student.
        real: the denoised x_t of the teacher (guided).

    Source: Yin et al. 2024, equation 7 (DMD), in terms of x0. Scaling all three by k > 0 changes nothing.
    """
    return ((fake - real) / normaliser(x0, real)).detach()


def pseudo_huber(student: Values, teacher: Values, *, c: float = 1e-3) -> PerSample:
    """Mean over dimensions of sqrt((s - t)^2 + c^2) - c: quadratic near zero, absolute far from it.

    Source: Song and Dhariwal 2023, "Improved Techniques for Training Consistency Models", equation 7 (element-wise form
    of the LCM training script).
    """
    return per_sample(((student - teacher).square() + c**2).sqrt() - c)


def apart(found: Values, target: Values, distance: str = "l2", c: float = 1e-3) -> PerSample:
    """How far samples are from where they should be: the mean square (`l2`), or `pseudo_huber` with this c (`huber`)."""
    return pseudo_huber(found, target, c=c) if distance == "huber" else per_sample((found - target).square())


def weight_of(
    weighting: str,
    alpha: Float[Tensor, "batch"],
    sigma: Float[Tensor, "batch"],
    data_std: float = 0.5,
    most: float = 5.0,
) -> PerSample:
    """What the squared error of x0 is multiplied by: `x0` 1, `epsilon` SNR, `v` SNR + 1, `velocity` ((alpha + sigma) / sigma)^2,
    `edm` alpha^2 / sigma^2 + 1 / d^2 (Karras et al. 2022, table 1), `min-snr` min(SNR, `most`) (Hang et al. 2023).

    The first four are the plain squared errors of these heads (for v where alpha^2 + sigma^2 = 1).
    """
    snr = (alpha / sigma).square()
    if weighting == "x0":
        return torch.ones_like(snr)
    if weighting == "epsilon":
        return snr
    if weighting == "v":
        return ((alpha.square() + sigma.square()) / sigma).square()
    if weighting == "velocity":
        return ((alpha + sigma) / sigma).square()
    if weighting == "edm":
        return snr + 1 / data_std**2
    if weighting == "min-snr":
        return snr.clamp(max=most)
    raise ValueError(f"unknown weighting '{weighting}' of a denoising error.")
