"""Sampling: steps from a noise level to a lower one, and the loop over a grid of times.

One step knows the noisy sample, what was predicted of it, and both times. The first-order step (DDIM without noise) is
Euler's method of the flow of x / alpha in sigma / alpha, and for straight lines Euler's method in t: all three are one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
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

    Of the samples whose step is to no noise at all, or from no data at all, it is of first order.
    """
    guess = ddim(x, prediction, noise, t, s)
    straight = isinstance(noise, Flow)
    flat = (noise.sigma(s) == 0) if straight else (noise.sigma(s) == 0) | (noise.alpha(t) == 0)
    whole = wide(~flat, x) > 0
    after = denoise(torch.where(whole, guess, x), torch.where(flat, t, s))  # nobody is asked about no noise
    if straight:
        second = x + (wide(s, x) - wide(t, x)) * (prediction.velocity + after.velocity) / 2
    else:
        alpha_t, sigma_t, alpha_s, sigma_s = (wide(f(z), x) for z in (t, s) for f in (noise.alpha, noise.sigma))
        some = torch.where(whole, alpha_t, 1.0)
        slope = (prediction.epsilon + after.epsilon) / 2
        second = alpha_s * (x / some + (sigma_s / alpha_s - sigma_t / some) * slope)
    return torch.where(whole, second, guess)


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
    whose: str = "the network",
) -> Values:
    """From the noisy `x` at `times[0]` down to `times[-1]`.

    Args:
        denoise: `(x_t, t) -> Prediction`, a time per sample.
        times: falling; as `noise.grid(steps)` gives them. On the CPU nothing waits for the device but the end.
        solver: `ddim`, `heun` (two evaluations a step, but for the last), or `renoise`: x0 and then noise drawn anew, as
            consistency models sample.
        fresh: `fresh(step)` draws the noise of a step, for `renoise` and for eta > 0.
        watch: called after every step with x_t, the prediction and x_s.
        whose: who denoises, for the sentence where it fails.

    Raises:
        ValueError: a solver that is not there, or one that needs noise and has none.
        FloatingPointError: something was not finite: in which step, at what time, and what.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver '{solver}'; there is: {', '.join(SOLVERS)}.")
    if fresh is None and (solver == "renoise" or eta):
        raise ValueError(f"{solver} with eta={eta} draws noise in every step; give fresh=...")
    known, first = times.tolist(), x
    left = isinstance(noise, Flow) or bool(noise.alpha(times[:1]) > 0)
    times = times.to(x.device)
    finite: list[Tensor] = []
    heads: list[str] = []
    for step, (here, there) in enumerate(pairwise(times)):
        t, s = here.expand(len(x)), there.expand(len(x))
        prediction = denoise(x, t)
        if solver == "heun" and known[step + 1] > 0 and (step or left):
            following = heun(x, prediction, noise, t, s, denoise)
        elif solver == "renoise":
            last = known[step + 1] == 0
            following = prediction.x0 if last else noise.renoise(prediction.x0, s, fresh(step))  # type: ignore[misc]
        else:
            drawn = fresh(step) if fresh is not None and eta else None
            following = ddim(x, prediction, noise, t, s, eta, drawn)
        if watch is not None:
            watch(x, prediction, following)
        finite.append(torch.stack([torch.isfinite(prediction.value).all(), torch.isfinite(following).all()]))
        heads.append(prediction.head)
        x = following
    refuse_nonfinite(finite, first, heads, known, whose)
    return x


def refuse_nonfinite(
    finite: Sequence[Bool[Tensor, "2"]], first: Values, heads: Sequence[str], times: Sequence[float], whose: str
) -> None:
    """Read what was noted of every step (its prediction is finite, its end is): once, when all are made, so that none waits for the device.

    Raises:
        FloatingPointError: something was not finite; the first step of which that is true.
    """
    told = torch.stack(list(finite)).tolist() if finite else []
    step = next((i for i, both in enumerate(told) if not all(both)), None)
    if step is None:
        return
    where = f"sampling step {step + 1} of {len(told)} (time {times[step]:.4g}), {whose}"
    if told[step][0]:
        raise FloatingPointError(
            f"{where}: its {heads[step]} is finite, and the step made of it is not. Of this head too little is known of the data at this time, or a number is too large."
        )
    before = step > 0 or bool(torch.isfinite(first).all())
    raise FloatingPointError(
        f"{where}: its {heads[step]} is not finite; its input was {'finite' if before else 'not finite either'}."
    )


def evaluations(steps: int, solver: str, guided: bool = False) -> int:
    """How often the network is called for a sample: guidance doubles, Heun's method too but for the last step."""
    calls = 2 * steps - 1 if solver == "heun" else steps
    return calls * (2 if guided else 1)
