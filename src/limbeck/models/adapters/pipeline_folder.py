"""Writing a pipeline of diffusers around a network, with the scheduler under which it samples as the network does by itself."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck.diffusion.further import constants, folded
from limbeck.models.adapters.companions import NETWORKS
from limbeck.models.adapters.diffusers_network import DiffusersNetwork
from limbeck.models.adapters.schedulers import Sampler, sampler_for

PIPELINE = "pipeline"  # where a student's folder has the pipeline that diffusers opens by itself


def save_pipeline(model: DiffusersNetwork, folder: Path, *, alone: bool = False) -> Sampler:
    """Write a pipeline of diffusers that samples as the network does by itself: it, what stood around it, a scheduler, and a README.

    What further numbers and styles add where nobody gives them is folded into the weights; the README says what the pipeline lacks.

    Args:
        alone: this is all that there will be of the student (see `sampler_for`).
    """
    network: Any = model.network
    kind, sampler = kind_of(model), sampler_of(model, alone=alone)
    with folded(model):
        if kind is None:
            network.save_pretrained(folder)
            sampler.scheduler.save_pretrained(folder / "scheduler")
        else:
            _pipeline(model, kind, sampler.scheduler).save_pretrained(folder)
    told = [*unsaid(model, sampler), f"```python\n{usage(model, sampler)}\n```\n"]
    (folder / "README.md").write_text("\n\n".join([f"# {folder.name}", *told]))
    return sampler


def kind_of(model: DiffusersNetwork) -> Any:
    """The class of the pipeline that a network is shipped in; None for a network by itself that diffusers has no pipeline for."""
    import diffusers

    if model.companions.pipeline is not None:
        return type(model.companions.pipeline)
    return diffusers.DDPMPipeline if "UNet" in type(model.network).__name__ else None


def sampler_of(model: DiffusersNetwork, *, alone: bool = False) -> Sampler:
    """The scheduler, and how its pipeline is called to sample as the network does."""
    kind = kind_of(model)
    takes = {} if kind is None else dict(inspect.signature(kind.__call__).parameters)
    unguided = set() if model.call.guidable else {"guidance_scale"}
    found = sampler_for(model.noise, model.sampling, model.companions.scheduler, takes.keys() - unguided, alone=alone)
    config: Any = model.network.config
    usual = getattr(model.companions.pipeline, "default_sample_size", None) or config.get("sample_size")
    if "height" in takes and isinstance(takes["height"].default, int):  # it does not ask its network
        usual = takes["height"].default // model.call.scale
    return replace(found, call={**found.call, **model.call.asked(takes, usual)})


def _pipeline(model: DiffusersNetwork, kind: Any, scheduler: Any) -> Any:
    known = model.companions.pipeline
    if known is None:
        return kind(unet=model.network, scheduler=scheduler)
    parts = dict(known.components)
    wanted = inspect.signature(kind.__init__).parameters
    said = {name: value for name, value in known.config.items() if name in wanted and name not in parts}
    name = next(n for n in NETWORKS if n in parts)
    return kind(**said | parts | {name: model.network, "scheduler": scheduler})


def unsaid(model: DiffusersNetwork, sampler: Sampler) -> list[str]:
    """What the pipeline alone lacks of the student, a sentence each."""
    told = [sampler.apart[:1].upper() + sampler.apart[1:]] if sampler.apart else []
    for part in constants(model):
        held = part.last[0].bias is not None
        what = ", ".join(f"{name} = {value:g}" for name, value in getattr(part, "defaults", {}).items())
        what = what or f"the weights {', '.join(f'{float(w):g}' for w in part.usual)} of its teachers' styles"
        told.append(
            f"{what[:1].upper() + what[1:]} {'is part of the weights here; another choice needs' if held else 'is left out here; it needs'} the student's folder and Limbeck."
        )
    if hasattr(model, "away"):
        told.append(
            "The student can be told what is not wanted (negative_condition, strength); the pipeline alone cannot: at guidance_scale=1 it hears no negative_prompt."
        )
    if hasattr(model, "route"):
        told.append("The student is told its own features; the pipeline alone is the network without that.")
    if hasattr(model, "base"):
        told.append(
            "The student begins its samples with its base model, which gives them back their diversity; the pipeline alone is the few-step network without it."
        )
    return told


def usage(model: DiffusersNetwork, sampler: Sampler, place: str = ".") -> str:
    """Python lines that sample with the pipeline (or read the network), without us."""
    if kind_of(model) is None:
        own, its = type(model.network).__name__, type(sampler.scheduler).__name__
        return f'from diffusers import {its}, {own}\nnetwork = {own}.from_pretrained("{place}")\nscheduler = {its}.from_pretrained("{place}/scheduler")'
    said = {"text": '"a prompt"', "class": "[3]"}.get(model.conditions)
    words = ", ".join([*([said] if said else []), *(f"{name}={value}" for name, value in sampler.call.items())])
    return f'from diffusers import DiffusionPipeline\npipe = DiffusionPipeline.from_pretrained("{place}")\nimages = pipe({words}).images'
