"""diffusers: the pipeline around a generator, with the scheduler under which it samples as the student does; opens without us."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.models.adapters import pipeline_folder
from limbeck.models.adapters.diffusers_network import DiffusersNetwork
from limbeck.models.adapters.schedulers import Sampler
from limbeck.shipping.checking import TOLERANCE
from limbeck.shipping.graph import quietly
from limbeck.shipping.package import Package

NAME = "diffusers"
QUANTIZES = ("none",)
NEEDS_NETWORK = True
METHODS = {
    "diversity": "its samples are begun by the base model, and no pipeline of diffusers holds two networks that take turns"
}
"""Methods whose students no pipeline can hold, and why not."""
SAMPLES = 2
SEED = 0


def check(student: Student) -> None:
    """Refuse a student that no pipeline of diffusers samples with.

    Raises:
        RecipeError: it is no network of diffusers; it came without a pipeline, or with one that takes no such condition; it begins with
            a base model.
    """
    model = student.model
    if not isinstance(model, DiffusersNetwork):
        raise RecipeError(
            f"the student is a {type(model).__name__}, no network of a pipeline of diffusers, so diffusers could not open it. "
            "There is: --to safetensors"
        )
    if model.conditions == "class" and model.sampling.guidance != 1 and model.null_class != 1000:
        raise RecipeError(
            f"the student is sampled with guidance {model.sampling.guidance:g}, and the pipelines of diffusers take 1000 for the class of nothing, "
            f"which is {model.null_class} here. There is: --to safetensors"
        )
    if hasattr(model, "base"):
        raise RecipeError(f"the student learnt by diversity: {METHODS['diversity']}. There is: --to safetensors")
    kind = pipeline_folder.kind_of(model)
    word = {"text": "prompt", "class": "class_labels"}.get(model.conditions)
    if kind is None or (word is not None and word not in inspect.signature(kind.__call__).parameters):
        what = "no pipeline around a" if kind is None else f"its {kind.__name__} gives no {model.conditions} to a"
        raise RecipeError(
            f"diffusers has {what} {type(model.network).__name__} that is given by itself, so nobody could sample with it alone. "
            "Give the student as a whole pipeline folder, or ship it as it is: --to safetensors"
        )


def write(package: Package) -> dict[str, Any]:
    """Write the folder, open it with diffusers alone, and compare its pictures with the student's, for the same latents and noise.

    Raises:
        RecipeError: no pipeline holds this student, or its pictures are others.
    """
    student = package.student
    check(student)
    model: Any = student.model
    with quietly():
        sampler = pipeline_folder.save_pipeline(model, package.folder, alone=True)
    if not sampler.able:
        raise RecipeError(f"{sampler.apart[:1].upper()}{sampler.apart[1:]} There is: --to safetensors")
    (package.folder / "README.md").unlink()  # the card of the export takes its place
    how = asdict(model.sampling) | ({"start": 1.0} if sampler.scheduler.config.get("trained_betas") else {})
    return {
        "file": "",
        "inputs": [],
        "args": {"pixels": model.pixels, "null_class": model.null_class if model.conditions == "class" else None}
        | model.call.options,
        "sampling": how,
        "usage": pipeline_folder.usage(model, sampler, package.folder.name.removeprefix(".").removesuffix(".writing")),
        "told": pipeline_folder.unsaid(model, sampler),
        "check": compare(package, sampler),
    }


def compare(package: Package, sampler: Sampler) -> dict[str, Any]:
    """The largest difference between the pipeline's pictures, in [0, 1], and the student's, from the same latents by the same noise.

    Raises:
        RecipeError: it is above 1e-4 although the pipeline samples in the same way.
    """
    words, given = _conditions(package)
    model: Any = package.student.model
    first = model.noise.grid(model.sampling.steps, model.sampling.start)[:1]
    heun = type(sampler.scheduler).__name__.startswith("Heun")  # whose samples are x / alpha
    unit = float(model.noise.alpha(first)) if heun else 1.0
    with torch.random.fork_rng(devices=[]):
        theirs = pictures(package.folder, sampler, words, model.call.handed(_start(model) / unit))
    with torch.random.fork_rng(devices=[]):
        ours = expected(model, given, "latents" in _takes(model))
    error = float((theirs.double() - ours.double()).abs().max())
    if not (error <= TOLERANCE or sampler.apart):
        raise RecipeError(
            f"the pictures of the pipeline differ from the student's by up to {error:.3g} for the same latents, more than {TOLERANCE:g}; nothing "
            "was written. Ship the student as it is: --to safetensors"
        )
    return {
        "against": "PyTorch",
        "samples": SAMPLES,
        "what": "pictures from equal latents",
        "largest_error": error,
        "tolerance": TOLERANCE,
    }


@torch.no_grad()
def pictures(
    folder: Path, sampler: Sampler, words: Mapping[str, Any], latents: Float[Tensor, "..."]
) -> Float[Tensor, "samples channels height width"]:
    """What the pipeline in a folder makes; `latents` where it takes them, else what it draws, from `SEED`."""
    import diffusers

    with quietly():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None  # it would blacken what both make
    taken = inspect.signature(type(pipe).__call__).parameters
    unit = getattr(pipe.scheduler, "init_noise_sigma", 1.0)  # those of flows have none
    more: dict[str, Any] = {"latents": latents / float(unit)} if "latents" in taken else {}
    more |= {"use_resolution_binning": False} if "use_resolution_binning" in taken else {}
    torch.manual_seed(SEED)
    images = pipe(**words, **sampler.call, **more, output_type="np").images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@torch.no_grad()
def expected(
    model: DiffusersNetwork, given: Mapping[str, Tensor], latents: bool
) -> Float[Tensor, "samples channels height width"]:
    """What the network itself makes from the same latents, drawing as the pipeline draws."""
    assert model.shape is not None
    x = _start(model)
    torch.manual_seed(SEED)
    if not latents:
        x = torch.randn(SAMPLES, *model.shape)
    first = model.noise.grid(model.sampling.steps, model.sampling.start)[:1]
    z = x / float(model.noise.sigma(first))
    drawn = model.call.handed(x).shape  # the pipeline's own form, whose numbers lie in another order

    def fresh(step: int) -> Tensor:
        return model.call.returned(torch.randn(drawn), x)

    usual, model.pixels = model.pixels, "unit"
    try:
        return model.decoded(model.generate(z, given, fresh=fresh))
    finally:
        model.pixels = usual


def _start(model: DiffusersNetwork) -> Tensor:
    """Noisy samples to begin from."""
    assert model.shape is not None
    return torch.randn(SAMPLES, *model.shape, generator=torch.Generator().manual_seed(SEED + 1))


def _takes(model: DiffusersNetwork) -> Mapping[str, Any]:
    return inspect.signature(pipeline_folder.kind_of(model).__call__).parameters


def _conditions(package: Package) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What pipeline and student are asked for: conditions of the data's own first rows, else any."""
    model: Any = package.student.model
    if model.conditions == "none":
        return {"batch_size": SAMPLES}, {}
    view, rows = package.student.view, package.rows
    column = None if view is None else view.named.get("condition")
    batch = {} if rows is None or column is None else rows.batch(rows.split, SAMPLES)
    found = None if column is None else batch.get(column)
    if model.conditions == "class":
        labels = [0] * SAMPLES if found is None else [int(k) for k in found]
        labels = (labels * SAMPLES)[:SAMPLES]
        return {"class_labels": labels}, model.understood(torch.tensor(labels))
    if isinstance(found, Tensor):
        encoded = found.repeat(SAMPLES, *[1] * (found.dim() - 1))[:SAMPLES]
        return {"prompt_embeds": encoded}, model.understood(encoded)
    texts = ([str(text) for text in found] * SAMPLES)[:SAMPLES] if found else ["a photo", "a drawing"]
    return {"prompt": texts}, model.understood(texts)
