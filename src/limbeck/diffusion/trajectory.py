"""What a critic of states of a student's own trajectory has to allow for: their noise was not all drawn."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from limbeck.diffusion.noise import Noise, wide
from limbeck.losses.scores import per_sample

Values = Float[Tensor, "batch ..."]
PerSample = Float[Tensor, "batch"]


def importance(noise: Noise, mid: PerSample, t: PerSample, eps: Values, fresh: Values) -> PerSample:
    """exp(-mean m^2 / 2) / exp(-mean xi^2 / 2): x_t = alpha_t x0 + sigma_t m was not noised by a normal m, but by the student's eps too.

    m = ((alpha_t / alpha_mid) sigma_mid eps + beta xi) / sigma_t, beta^2 = sigma_t^2 - (alpha_t sigma_mid / alpha_mid)^2, xi = `fresh`.
    The exponents are means over dimensions, as published. 1 where sigma_mid = 0.
    """
    m = noise.further(wide(noise.sigma(mid), eps) * eps, mid, t, fresh) / wide(noise.sigma(t), eps)
    return ((per_sample(fresh.square()) - per_sample(m.square())) / 2).exp()
