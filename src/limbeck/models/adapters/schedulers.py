"""What a scheduler of diffusers means: the noise that a network knows, what it predicts, and back."""

from __future__ import annotations

from typing import Any

from limbeck.diffusion.network import Sampling
from limbeck.diffusion.noise import VE, VP, Flow, Noise
from limbeck.diffusion.predictors import DATA_STD
from limbeck.errors import RecipeError, nearest

_HEADS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0", "flow_prediction": "velocity"}
_BETAS = {"linear": "linear", "scaled_linear": "scaled", "squaredcos_cap_v2": "cosine"}


def noise_of(scheduler: Any) -> tuple[Noise, str, float]:
    """The schedule of noise, the head, and the data's standard deviation that a scheduler of diffusers stands for.

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
        shift = config.get("shift", config.get("flow_shift", 1.0)) or 1.0
        return Flow(shift=shift, scale=config.num_train_timesteps), "velocity", DATA_STD
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


def scheduler_for(noise: Noise, sampling: Sampling, own: Any) -> Any:
    """A scheduler of diffusers under which the pipeline samples as `sampling` says, as nearly as they have one; `own` is the pipeline's."""
    import diffusers

    if isinstance(noise, Flow):
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(
            own.config, stochastic_sampling=sampling.solver == "renoise"
        )
    if isinstance(noise, VE):
        return own
    renoises = sampling.solver == "renoise" and sampling.steps > 1
    kind = diffusers.LCMScheduler if renoises else diffusers.DDIMScheduler
    more = {} if renoises else {"timestep_spacing": "trailing"}
    return kind.from_config(own.config, clip_sample=False, set_alpha_to_one=True, **more)
