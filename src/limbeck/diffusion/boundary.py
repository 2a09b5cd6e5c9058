"""What methods share that learn a teacher's trajectories: where a jump ends, what it would have to say, and where nothing may change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.noise import Noise, wide
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.solvers import ddim

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]


def scalings(share: Times, k: float = 10.0, data_std: float = 0.5) -> tuple[Times, Times]:
    """(c_skip, c_out) = (d^2 / ((k t)^2 + d^2), k t / sqrt((k t)^2 + d^2)), t the share of the noise in thousandths: (1, 0) at no noise.

    Source: the training script of latent consistency models (Luo et al. 2023) in diffusers, k = 10, d = 0.5.
    """
    scaled = k * 1000 * share
    root = (scaled.square() + data_std**2).sqrt()
    return (data_std / root).square(), scaled / root


class Bounded(Denoiser):
    """f(x, t) = c_skip x + c_out D(x, t): a denoiser that leaves data as they are. From a thousandth of the range on c_skip < 0.003."""

    def __call__(self, x: Values, t: Times, *args: Any, **options: Any) -> Prediction:
        said = super().__call__(x, t, *args, **options)
        skip, out = scalings(self.noise.share(t))
        end = wide(skip, said.x_t) * said.x_t + wide(out, said.x_t) * said.x0
        return Prediction(end, "x0", said.x_t, said.alpha, said.sigma, said.data_std)


def jump(denoise: Callable[[Values, Times], Prediction], x: Values, t: Times, end: Times, noise: Noise) -> Values:
    """g(x_t, t -> e): one step without noise (DDIM) to time `end`, by what the denoiser says; x itself where t = e.

    To e = 0 it is the denoiser's x0. Where nothing is to be done the denoiser is asked at another time, and not heard.
    """
    stays = t <= end
    at = torch.where(stays, torch.full_like(t, noise.last), t)
    return torch.where(wide(stays, x) > 0, x, ddim(x, denoise(x, at), noise, at, end))


def landing(x: Values, x_s: Values, noise: Noise, t: Times, s: Times) -> Values:
    """The x0 that a denoiser has to say of x_t so that one step without noise lands on x_s: (x_s - r x_t) / (alpha_s - r alpha_t), r = sigma_s / sigma_t.

    Source: Salimans and Ho 2022, "Progressive Distillation", algorithm 2. Undefined for s = t.
    """
    ratio = wide(noise.sigma(s) / noise.sigma(t), x)
    return (x_s - ratio * x) / (wide(noise.alpha(s), x) - ratio * wide(noise.alpha(t), x))
