"""Sampling: steps from a noise level to a lower one, and the loop over a grid of times.

One step knows the noisy sample, what was predicted of it, and both times. The first-order step (DDIM without noise) is
Euler's method of the flow of x / alpha in sigma / alpha, and for straight lines Euler's method in t: all three are one.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.diffusion.noise import Flow, Noise, wide
from limbeck.diffusion.predictors import Prediction

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]
Denoise = Callable[[Values, Times], Prediction]
Fresh = Callable[[int], Values]
Solver = Literal["ddim", "heun", "renoise"]
SOLVERS = get_args(Solver)


def ddim(
    x: Values, prediction: Prediction, noise: Noise, t: Times, s: Times, eta: float = 0.0, fresh: Values | None = None
) -> Values:
    """alpha_s x0 + sqrt(sigma_s^2 - nu^2) eps + nu fresh.

    nu^2 = eta^2 (sigma_s / sigma_t)^2 (sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2), the variance of the reverse of one noising
    step for any schedule; for VP it is that of Song et al. 2021 (DDIM), equation 16. eta = 1 is ancestral sampling.
    """
    alpha_t, sigma_t, alpha_s, sigma_s = (wide(f(z), x) for z in (t, s) for f in (noise.alpha, noise.sigma))
    nu = torch.zeros_like(sigma_s)
    if eta:
        step = (sigma_t.square() - (alpha_t * sigma_s / alpha_s).square()).clamp(min=0)
        nu = eta * sigma_s / sigma_t * step.sqrt()
    x_s = alpha_s * prediction.x0 + (sigma_s.square() - nu.square()).clamp(min=0).sqrt() * prediction.epsilon
    return x_s if fresh is None else x_s + nu * fresh


def heun(x: Values, prediction: Prediction, noise: Noise, t: Times, s: Times, denoise: Denoise) -> Values:
    """The trapezoid rule on the flow (Karras et al. 2022, algorithm 1): for `Flow` dx/dt = velocity, otherwise d(x / alpha) = eps d(sigma / alpha).

    A step to no noise at all, or from no data at all, is of first order.
    """
    guess = ddim(x, prediction, noise, t, s)
    alpha_t, sigma_t, alpha_s, sigma_s = (wide(f(z), x) for z in (t, s) for f in (noise.alpha, noise.sigma))
    straight = isinstance(noise, Flow)
    if bool((sigma_s == 0).any()) or (not straight and bool((alpha_t == 0).any())):
        return guess
    after = denoise(guess, s)
    if straight:
        return x + (wide(s, x) - wide(t, x)) * (prediction.velocity + after.velocity) / 2
    slope = (prediction.epsilon + after.epsilon) / 2
    return alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * slope)


def sample(
    denoise: Denoise,
    x: Values,
    noise: Noise,
    times: Float[Tensor, "steps+1"],
    solver: str = "ddim",
    *,
    eta: float = 0.0,
    fresh: Fresh | None = None,
    watch: Callable[[Values, Prediction, Values], Any] | None = None,
) -> Values:
    """From the noisy `x` at `times[0]` down to `times[-1]`.

    Args:
        denoise: `(x_t, t) -> Prediction`, a time per sample.
        times: falling; as `noise.grid(steps)` gives them.
        solver: `ddim`, `heun` (two evaluations a step, but for the last), or `renoise`: x0 and then noise drawn anew, as
            consistency models sample.
        fresh: `fresh(step)` draws the noise of a step, for `renoise` and for eta > 0.
        watch: called after every step with x_t, the prediction and x_s.

    Raises:
        ValueError: a solver that is not there, or one that needs noise and has none.
        FloatingPointError: a prediction is not finite; which step, and what was.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver '{solver}'; there is: {', '.join(SOLVERS)}.")
    if fresh is None and (solver == "renoise" or eta):
        raise ValueError(f"{solver} with eta={eta} draws noise in every step; give fresh=...")
    times = times.to(x.device)
    for step, (here, there) in enumerate(pairwise(times)):
        t, s = here.expand(len(x)), there.expand(len(x))
        prediction = denoise(x, t)
        if not torch.isfinite(prediction.value).all():
            kind = "was finite" if torch.isfinite(x).all() else "was not finite either"
            raise FloatingPointError(
                f"sampling step {step + 1} of {len(times) - 1} (time {float(here):.4g}): the network's {prediction.head} is not finite; "
                f"its input {kind}."
            )
        if solver == "heun":
            following = heun(x, prediction, noise, t, s, denoise)
        elif solver == "renoise":
            last = float(there) == 0
            following = prediction.x0 if last else noise.renoise(prediction.x0, s, fresh(step))  # type: ignore[misc]
        else:
            drawn = fresh(step) if fresh is not None and eta else None
            following = ddim(x, prediction, noise, t, s, eta, drawn)
        if watch is not None:
            watch(x, prediction, following)
        x = following
    return x


def evaluations(steps: int, solver: str, guided: bool = False) -> int:
    """How often the network is called for a sample: guidance doubles, Heun's method too but for the last step."""
    calls = 2 * steps - 1 if solver == "heun" else steps
    return calls * (2 if guided else 1)
