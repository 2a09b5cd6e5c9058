"""What a scheduler of diffusers means: the noise that a network knows, what it predicts, and back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from limbeck.diffusion.network import Sampling
from limbeck.diffusion.noise import VE, VP, Flow, Noise
from limbeck.diffusion.predictors import DATA_STD
from limbeck.errors import RecipeError, nearest

_HEADS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "flow_prediction": "velocity"}
_BETAS = {"linear": "linear", "scaled_linear": "scaled", "squaredcos_cap_v2": "cosine"}


def noise_of(scheduler: Any, tokens: int = 0) -> tuple[Noise, str, float]:
    """The schedule of noise, the head, and the data's standard deviation that a scheduler of diffusers stands for.

    Args:
        tokens: how many tokens a sample has, after which some schedulers of flows shift their times.

    Raises:
        RecipeError: a scheduler of another kind, or a kind of prediction that it does not go with.
    """
    config, name = scheduler.config, type(scheduler).__name__
    kind = config.get("prediction_type", "epsilon")
    if "FlowMatch" in name or config.get("use_flow_sigmas"):
        if kind not in ("epsilon", "flow_prediction"):
            raise RecipeError(
                f"the scheduler {name} is one of flows, whose networks predict velocities, and its prediction_type is '{kind}'."
            )
        if config.get("invert_sigmas"):
            raise RecipeError(
                f"the scheduler {name} counts its times from noise to data (invert_sigmas), which is not known here."
            )
        return Flow(shift=_shift(config, tokens), scale=config.num_train_timesteps), "velocity", DATA_STD
    if "EDM" in name:
        if kind != "epsilon":
            raise RecipeError(
                f"the scheduler {name} has prediction_type '{kind}'; networks of Karras et al. are read with 'epsilon', which means F there."
            )
        return VE(least=config.sigma_min, most=config.sigma_max, rho=config.rho), "edm", config.sigma_data
    if "beta_schedule" not in config and "trained_betas" not in config:
        raise RecipeError(
            f"the scheduler {name} is neither of variance-preserving noise (betas), nor of flows, nor of Karras et al.; it cannot be told what noise the network knows."
        )
    if kind not in _HEADS or kind == "flow_prediction":
        raise RecipeError(
            f"the scheduler {name} has prediction_type '{kind}', which does not go with variance-preserving noise. {nearest(kind, _HEADS)}"
        )
    betas = _BETAS.get(config.get("beta_schedule", ""))
    if config.get("trained_betas") is not None or betas is None:
        given = config.get("trained_betas")
        listed = tuple(float(b) for b in (given if given is not None else scheduler.betas))
        return VP(betas=listed, steps=len(listed), zero_terminal=False), _HEADS[kind], DATA_STD
    return (
        VP(
            betas=betas,  # type: ignore[arg-type]
            steps=config.num_train_timesteps,
            start=config.beta_start,
            end=config.beta_end,
            zero_terminal=bool(config.get("rescale_betas_zero_snr", False)),
        ),
        _HEADS[kind],
        DATA_STD,
    )


def _shift(config: Any, tokens: int) -> float:
    """By how much a scheduler shifts its times; a dynamic one the more the more tokens (Esser et al. 2024, section 5.3.2)."""
    if not config.get("use_dynamic_shifting"):
        return config.get("shift", config.get("flow_shift", 1.0)) or 1.0
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = low + (high - low) * (tokens - few) / (many - few)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers under which a pipeline samples as a network of ours does.

    Attributes:
        call: the words with which the pipeline is called then.
        apart: why its samples are only nearly the network's, in a sentence; empty: they are the same.
        able: whether they are at least nearly that.
    """

    scheduler: Any
    call: Mapping[str, Any]
    apart: str = ""
    able: bool = True


def sampler_for(
    noise: Noise, sampling: Sampling, own: Any, takes: Collection[str] = (), *, alone: bool = False
) -> Sampler:
    """The scheduler and the call that sample as `sampling` says; `own` is the pipeline's scheduler.

    Noise drawn anew is LCMScheduler's way, DDIM is DDIMScheduler's, Heun's method HeunDiscreteScheduler's. `call` is `num_inference_steps`
    alone where that gives the very times of the network, else `timesteps` or `sigmas` where the pipeline takes them.

    Args:
        takes: the words that the pipeline's call takes.
        alone: nobody reads the network's noise back from this scheduler, so that it may end where sampling begins (`start` below 1).
    """
    made = _of_flow if isinstance(noise, Flow) else _of_vp if isinstance(noise, VP) else _of_ve
    found = made(noise, sampling, own, takes, alone)  # type: ignore[arg-type]
    w, eta = sampling.guidance, sampling.eta if sampling.solver == "ddim" else 0.0
    if "guidance_scale" in takes:
        found = replace(found, call={**found.call, "guidance_scale": int(w) if w == int(w) else w})
    if eta and "eta" in takes:
        found = replace(found, call={**found.call, "eta": eta})
    if w < 1 or (w != 1 and "guidance_scale" not in takes):
        return replace(found, apart=f"the pipeline cannot be guided by {w:g}, as the student is.", able=False)
    if eta and "eta" not in takes:
        return replace(found, apart=f"the pipeline takes no eta, and the student samples with {eta:g}.", able=False)
    return found


def _of_vp(noise: VP, sampling: Sampling, own: Any, takes: Collection[str], alone: bool) -> Sampler:
    import diffusers

    steps, top = sampling.steps, round(noise.last)
    wanted = noise.fed(noise.grid(steps, sampling.start)[:-1])
    more: dict[str, Any] = {"clip_sample": False, "thresholding": False}
    if alone and sampling.start < 1 and float(wanted[0]).is_integer():
        top = int(wanted[0]) + 1
        log = noise._table()[: top + 1]
        betas = (-torch.expm1(log.diff())).tolist()
        more |= {"trained_betas": betas, "num_train_timesteps": top, "rescale_betas_zero_snr": False}
    kind: Any = diffusers.DDIMScheduler
    if steps > 1 and sampling.solver == "renoise":
        kind = diffusers.LCMScheduler
        more |= {"original_inference_steps": steps if top % steps == 0 else top}
    elif steps > 1 and sampling.solver == "heun" and "latents" in takes and not noise.zero_terminal:
        kind = diffusers.HeunDiscreteScheduler
    if kind is not diffusers.LCMScheduler:
        more |= {"timestep_spacing": "trailing", "set_alpha_to_one": True, "use_karras_sigmas": False}
    scheduler, call = kind.from_config(own.config, **more), {"num_inference_steps": steps}
    if sampling.solver == "heun" and steps > 1 and kind is diffusers.DDIMScheduler:
        return Sampler(scheduler, call, _HEUN, able=False)
    scheduler.set_timesteps(steps)
    found = scheduler.timesteps.unique().flip(0)  # Heun's method comes by a time twice
    if _same(found, wanted):
        return Sampler(scheduler, call)
    nearly = "" if torch.equal(wanted.round(), wanted) else _whole(wanted)
    if "timesteps" in takes and kind is not diffusers.DDIMScheduler:
        return Sampler(scheduler, {"timesteps": wanted.round().int().tolist()}, nearly)
    if nearly and _same(found, wanted, 1.0):
        return Sampler(scheduler, call, nearly)
    return Sampler(scheduler, call, _times(wanted, found), able=False)


def _of_flow(noise: Flow, sampling: Sampling, own: Any, takes: Collection[str], alone: bool) -> Sampler:
    import diffusers

    steps = sampling.steps
    shares = torch.linspace(sampling.start, 0, steps + 1)[:-1]
    wanted = noise.fed(noise.at(shares))
    more: dict[str, Any] = {"stochastic_sampling": sampling.solver == "renoise", "use_dynamic_shifting": False}
    more |= {"shift": noise.shift, "shift_terminal": None, "use_karras_sigmas": False}
    more |= {"use_exponential_sigmas": False, "use_beta_sigmas": False}
    kind: Any = diffusers.FlowMatchEulerDiscreteScheduler
    call = {"num_inference_steps": steps}
    for end in (None, float(noise.at(shares[-1]))):
        scheduler = kind.from_config(own.config, **more | {"shift_terminal": end if steps > 1 else None})
        scheduler.set_timesteps(steps)
        if sampling.solver == "heun" and steps > 1:
            return Sampler(scheduler, call, _HEUN, able=False)
        if _same(scheduler.timesteps, wanted):
            return Sampler(scheduler, call)
    scheduler = kind.from_config(own.config, **more)
    if "sigmas" in takes:
        return Sampler(scheduler, {"sigmas": [round(float(u), 6) for u in shares]})
    scheduler.set_timesteps(steps)
    return Sampler(scheduler, call, _times(wanted, scheduler.timesteps), able=False)


def _of_ve(noise: Noise, sampling: Sampling, own: Any, takes: Collection[str], alone: bool) -> Sampler:
    import diffusers

    call = {"num_inference_steps": sampling.steps}
    if sampling.solver != "ddim" and sampling.steps > 1:
        return Sampler(
            own,
            call,
            f"under the noise of Karras et al. diffusers has no scheduler that samples as {sampling.solver} does.",
            able=False,
        )
    more = {"sigma_schedule": "karras", "final_sigmas_type": "zero"}
    apart = (
        "" if "latents" in takes else "the pipeline does not scale what the network is shown, as this noise wants it."
    )
    return Sampler(diffusers.EDMEulerScheduler.from_config(own.config, **more), call, apart, able=not apart)


_HEUN = "the student samples by Heun's method, and there is no scheduler for that here: the pipeline goes by Euler's, whose samples differ (method.solver=ddim is one that both know)."


def _same(found: Any, wanted: Any, within: float = 1e-3) -> bool:
    return len(found) == len(wanted) and bool((found.double() - wanted.double()).abs().max() < within)


def _whole(wanted: Any) -> str:
    return f"the student is evaluated at the times {_listed(wanted)}, and schedulers of diffusers know whole steps: samples are nearly the student's."


def _times(wanted: Any, found: Any) -> str:
    return f"the student is evaluated at the times {_listed(wanted)}; the pipeline, which cannot be told them, is at {_listed(found)}."


def _listed(times: Any) -> str:
    return ", ".join(f"{float(t):.5g}" for t in times)
