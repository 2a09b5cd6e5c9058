"""diffusers: the U-Net or transformer of a pipeline folder with its scheduler, as a denoising network; new ones by `build`.

The scheduler says what noise the network knows and what it predicts; an autoencoder and text encoders come along frozen, once
per folder, and are no part of the network: they are neither trained nor counted nor copied.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from limbeck.errors import RecipeError, nearest
from limbeck.models.adapters.companions import NETWORKS, Companions
from limbeck.models.adapters.diffusers_network import DiffusersNetwork
from limbeck.models.adapters.pipeline_folder import PIPELINE, save_pipeline
from limbeck.sources import Source

_OURS = ("head", "null_class", "pixels", "size", "embedded_guidance", "checkpointing", "scheduler")
_SEEN: WeakValueDictionary[str, Companions] = WeakValueDictionary()


def read(place: str | Path, whose: str, args: dict[str, Any]) -> Source:
    """The denoising network of a pipeline (a folder with model_index.json, or a hub name), or of a network's folder by itself.

    Args:
        args: `head` (what it is believed to predict; must agree with the scheduler), `null_class`, `pixels`, `size`, `embedded_guidance`,
            `checkpointing`; see `DiffusersNetwork`. `scheduler`: the folder of the scheduler, for a network by itself.

    Raises:
        RecipeError: diffusers is missing, the folder cannot be read, or its scheduler is not understood.
    """
    diffusers = _library(whose, place)
    for name in args:
        if name not in _OURS:
            raise RecipeError(f"{whose}.args: unknown key '{name}' of a diffusers pipeline. {nearest(name, _OURS)}")
    mark, known = str(Path(place).resolve()), None
    spec = {"model": str(place), **({"args": dict(args)} if args else {})}
    weights = Path(place).resolve() if Path(place).exists() else None
    own = {name: value for name, value in args.items() if name != "scheduler"}
    try:
        if (Path(place) / "config.json").exists():
            network, scheduler = _by_itself(diffusers, Path(place), args.get("scheduler"), whose)
            return Source(DiffusersNetwork(network, Companions(scheduler=scheduler), **own), spec, weights)
        if "scheduler" in args:
            raise RecipeError(
                f"{whose}.args.scheduler: {place} is a whole pipeline, which has its own scheduler; leave it out."
            )
        known = _SEEN.get(mark)
        if known is None:
            parts = diffusers.DiffusionPipeline.load_config(place)
            with _importing():
                getattr(diffusers, parts["_class_name"], None)
            without = {name: None for name, part in parts.items() if part == [None, None]}
            pipeline = diffusers.DiffusionPipeline.from_pretrained(place, **without)
            companions = _SEEN[mark] = Companions(pipeline)
            network = _network(pipeline)
            _release(pipeline)
        else:
            companions, network = known, _network_alone(diffusers, place)
    except RecipeError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{whose}.model '{place}': diffusers cannot read it: {first}") from error
    return Source(DiffusersNetwork(network, companions, **own), spec, weights)


def _by_itself(diffusers: Any, place: Path, scheduler: str | None, whose: str) -> tuple[Any, Any]:
    """A network out of its own folder, and the scheduler that says what noise it knows."""
    where = Path(scheduler) if scheduler else place / "scheduler"
    if not (where / "scheduler_config.json").exists():
        raise RecipeError(
            f"{whose}.model {place} is a network without a scheduler, so it is not known what noise it was trained with, nor what it predicts. "
            f"Name the folder of its scheduler: {whose}.args.scheduler=FOLDER (with scheduler_config.json)"
        )
    name = json.loads((place / "config.json").read_text())["_class_name"]
    kind = json.loads((where / "scheduler_config.json").read_text())["_class_name"]
    return getattr(diffusers, name).from_pretrained(place), getattr(diffusers, kind).from_pretrained(where)


def build(config: str, **changes: Any) -> DiffusersNetwork:
    """A new network of the same make as that of a pipeline folder, with changes to its configuration and fresh weights.

    As a student: `{model: "limbeck.models.adapters.of_diffusers:build", args: {config: teacher/, block_out_channels: [32, 64]}}`.
    """
    source = read(config, "student", {k: v for k, v in changes.items() if k in _OURS})
    given: Any = source.model
    own = {k: v for k, v in changes.items() if k not in _OURS}
    kind = type(given.network)
    known = {**given.network.config, "_use_default_values": []}  # which would undo a change of any of them
    made = kind.from_config({**known, **own})
    options = {k: v for k, v in changes.items() if k in _OURS and k != "scheduler"}
    return DiffusersNetwork(made, given.companions, **options)


def keep(model: Any, folder: Path, origin: Path | None) -> None:
    """The whole pipeline beside the student's weights, in a folder that diffusers opens without us."""
    save_pipeline(model, folder / PIPELINE)


def _network(pipeline: Any) -> Any:
    found = [getattr(pipeline, name, None) for name in NETWORKS]
    network = next((part for part in found if part is not None), None)
    if network is None:
        raise RecipeError(
            f"the pipeline {type(pipeline).__name__} has neither a unet nor a transformer; it has {', '.join(pipeline.components)}."
        )
    return network


def _release(pipeline: Any) -> None:
    """The pipeline keeps nothing of its network: that is the student's or the teacher's to hold."""
    pipeline.register_modules(**{name: None for name in NETWORKS if getattr(pipeline, name, None) is not None})


def _network_alone(diffusers: Any, place: str | Path) -> Any:
    index = diffusers.DiffusionPipeline.load_config(place)
    name = next(n for n in NETWORKS if index.get(n))
    return getattr(diffusers, index[name][1]).from_pretrained(place, subfolder=name)


def _library(whose: str, place: str | Path) -> Any:
    try:
        with _importing():
            import diffusers

            _ = diffusers.DiffusionPipeline  # which imports the most
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{whose}.model {place} is a diffusers pipeline: pip install 'limbeck[diffusion]' to read it."
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    if importlib.util.find_spec("transformers"):  # the library of its text encoders, with bars of its own
        from transformers.utils import logging as of_transformers

        of_transformers.disable_progress_bar()
    return diffusers


@contextmanager
def _importing() -> Iterator[None]:
    """Without what libraries say of optional ones that are not here, or not for this machine."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
