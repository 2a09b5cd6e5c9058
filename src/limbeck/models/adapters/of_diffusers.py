"""diffusers: the U-Net or transformer of a pipeline folder with its scheduler, as a denoising network; new ones by `build`.

The scheduler says what noise the network knows and what it predicts; an autoencoder and text encoders come along frozen, once
per folder, and are no part of the network: they are neither trained nor counted nor copied.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck.diffusion.further import constants, folded
from limbeck.diffusion.network import DiffusionNetwork, Given
from limbeck.errors import RecipeError, nearest
from limbeck.models.adapters.calls import NAMES, call_of
from limbeck.models.adapters.schedulers import Sampler, noise_of, sampler_for
from limbeck.sources import Source

PIPELINE = "pipeline"  # where a student's folder has the pipeline that diffusers opens by itself
_NETWORKS = ("unet", "transformer")
_OURS = ("head", "null_class", "pixels", "size", "embedded_guidance", "checkpointing", "scheduler")
Values = Float[Tensor, "batch ..."]


class Companions:
    """What stands around the network in its pipeline: all its parts, by name. Never copied, never trained."""

    def __init__(self, pipeline: Any = None, scheduler: Any = None) -> None:
        self.pipeline, self.scheduler = pipeline, scheduler if pipeline is None else pipeline.scheduler
        for name in self._modules():
            self.part(name).requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Companions:
        return self

    def part(self, name: str) -> Any:
        """A part of the pipeline; None where it has none of this name."""
        return getattr(self.pipeline, name, None)

    @contextmanager
    def whole(self, network: nn.Module) -> Iterator[Any]:
        """The pipeline with a network lent to it: some look at its configuration when they encode a text."""
        name = next(n for n in _NETWORKS if hasattr(self.pipeline, n))
        setattr(self.pipeline, name, network)
        try:
            yield self.pipeline
        finally:
            setattr(self.pipeline, name, None)

    def parts(self, beginning: str) -> dict[str, nn.Module]:
        """The networks whose names begin so."""
        return {name: self.part(name) for name in self._modules() if name.startswith(beginning)}

    def near(self, device: torch.device) -> None:
        """Everything where the network is."""
        for name in self._modules():
            if next(self.part(name).parameters()).device != device:
                self.part(name).to(device)

    def _modules(self) -> list[str]:
        parts = {} if self.pipeline is None else self.pipeline.components
        return [n for n, part in parts.items() if isinstance(part, nn.Module) and n not in _NETWORKS]


class DiffusersNetwork(DiffusionNetwork):
    """A network of diffusers, `network`, with the noise and the head that its scheduler names.

    Args:
        pixels: what a data column holds: `unit` pictures in [0, 1], `signed` in [-1, 1], as the network wants them, or `latents` of its
            autoencoder (a column that was encoded, and scaled, before).
        null_class: the label that stands for no class; None: the network was always told one.
        size: height and width of a sample as it is denoised (latents, where it denoises those), in place of its configuration's.
        embedded_guidance: what a network is shown that was distilled from a guided one (FLUX.1-dev: 3.5, its pipeline's own).
    """

    family = "of_diffusers"

    def __init__(
        self,
        network: nn.Module,
        companions: Companions,
        *,
        head: str | None = None,
        null_class: int | None = None,
        pixels: str = "unit",
        size: int | Sequence[int] | None = None,
        embedded_guidance: float | None = None,
        checkpointing: bool = False,
    ) -> None:
        conditions, null_class = _conditions(network, null_class)
        call = call_of(network, conditions, size=size, pipeline=companions.pipeline, guidance=embedded_guidance)
        noise, known, std = noise_of(companions.scheduler, call.tokens)
        if head is not None and head != known:
            raise RecipeError(
                f"args.head is {head}, and the scheduler of this pipeline ({type(companions.scheduler).__name__}, prediction_type "
                f"{companions.scheduler.config.get('prediction_type')}) says {known}. One of them contradicts what the network was trained for: mend scheduler/scheduler_config.json, or leave args.head out."
            )
        super().__init__(noise, known, shape=call.shape, data_std=std)
        self.network, self.companions, self.call = network, companions, call
        if pixels not in ("unit", "signed", "latents"):
            raise RecipeError(f"args.pixels '{pixels}': {nearest(pixels, ['unit', 'signed', 'latents'])}")
        self.pixels = pixels
        self.conditions, self.null_class = conditions, null_class
        self.guidable = self.conditions == "text" or self.null_class is not None
        self.middle = _middle(network, call.block)
        self._nothing: dict[str, Tensor] = {}
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]

    def predict(self, x: Values, t: Float[Tensor, "batch"], **given: Tensor) -> Values:
        words = self.call.words(x, self.noise.fed(t), given)
        return self.call.said(self.network(**words, return_dict=False)[0], x)

    def refuse(self, x: Values, whose: str) -> None:
        low, high, std = float(x.min()), float(x.max()), float(x.float().std())
        if self.pixels == "unit" and (low < -0.05 or high > 1.05):
            raise RecipeError(
                f"the {whose} is told that pictures are in [0, 1], and they go from {low:.3g} to {high:.3g}. "
                f"Say what they are: {whose}.args.pixels=signed (in [-1, 1]), or latents"
            )
        vae = self.companions.part("vae") or self.companions.part("vqvae")
        factor = vae.config.scaling_factor if vae is not None else 1.0
        if self.pixels == "latents" and not 0.4 < std < 2.5 and 0.4 < std * factor < 2.5:
            raise RecipeError(
                f"the latents have a standard deviation of {std:.3g}, and the {whose} denoises such of about 1: they were not multiplied by the "
                f"autoencoder's scaling_factor, {factor:g}."
            )

    def encoders(self) -> dict[str, nn.Module]:
        texts = {} if self.conditions != "text" else self.companions.parts("text_encoder")
        return ({} if self._autoencoder() is None else {"autoencoder": self._autoencoder()}) | texts

    def understands_as(self, other: DiffusionNetwork) -> bool:
        alike = isinstance(other, DiffusersNetwork) and other.companions is self.companions
        return alike and self.conditions == "text" and type(self.call) is type(other.call)

    @torch.no_grad()
    def encoded(self, x: Values) -> Values:
        x = x * 2 - 1 if self.pixels == "unit" else x
        vae = self._autoencoder()
        if vae is None:
            return x
        self.companions.near(x.device)
        found = vae.encode(x.to(vae.dtype))
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        centre, factor = _scale(vae, x)
        return (latents.to(x.dtype) - centre) * factor

    def decoded(self, x: Values) -> Values:
        vae = self._autoencoder()
        if vae is not None:
            self.companions.near(x.device)
            centre, factor = _scale(vae, x)
            latents = x / factor + centre
            x = vae.decode(latents.to(vae.dtype), return_dict=False)[0].to(x.dtype)
        return (x / 2 + 0.5).clamp(0, 1) if self.pixels == "unit" else x

    def _autoencoder(self) -> Any:
        return None if self.pixels == "latents" else self.companions.part("vae") or self.companions.part("vqvae")

    @torch.no_grad()
    def understood(self, condition: Any) -> dict[str, Tensor]:
        """Labels and encoded texts as they are; texts as the pipeline's own encoders have them."""
        if condition is None or isinstance(condition, Tensor):
            return {} if condition is None else {"condition": condition}
        if self.companions.part("encode_prompt") is None:
            raise RecipeError(
                "the condition is a text, and this network came without a text encoder: give the whole pipeline folder, or a column of encoded texts."
            )
        device = next(self.network.parameters()).device
        self.companions.near(device)
        takes = inspect.signature(self.companions.pipeline.encode_prompt).parameters
        options = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        more = {"prompt_2": None, "prompt_3": None}
        options = {k: v for k, v in (options | more).items() if k in takes}
        with self.companions.whole(self.network) as pipeline:
            return self.call.named(pipeline.encode_prompt(list(condition), **options))

    def conditioned(self, given: Given, drop: Bool[Tensor, "batch"] | None) -> dict[str, Tensor]:
        found = super().conditioned(given, drop)
        if drop is None:
            return found
        if self.conditions == "class":
            return found | {"condition": torch.where(drop, self.null_class, found["condition"])}  # type: ignore[arg-type]
        nothing = self._of_nothing(found)
        return found | {
            name: torch.where(drop.reshape(-1, *[1] * (value.dim() - 1)), nothing[name].to(value), value)
            for name, value in found.items()
            if name in nothing
        }

    def _of_nothing(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The condition of an empty text, encoded once; zeros where the pipeline has those for it, or no encoder to ask."""
        config: Any = getattr(self.companions.pipeline, "config", {})
        if self.companions.part("encode_prompt") is None or config.get("force_zeros_for_empty_prompt"):
            return {name: torch.zeros_like(value[:1]) for name, value in given.items() if name in NAMES}
        self._nothing = self._nothing or self.understood([""])
        return self._nothing

    def view_for(self, columns: Any) -> Any:
        """Pictures brought to the network's size, and the column of the condition."""
        from limbeck.models.adapters.columns import picture_view

        view = super().view_for(columns)
        if view is None or self.pixels == "latents" or view.get("keys") != ["image"]:
            return view
        vae = self._autoencoder()
        factor = 1 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        assert self.shape is not None
        sized = picture_view(columns, None, [0.0] * 3, [1.0] * 3, [factor * side for side in self.shape[1:]])
        channels = vae.config.in_channels if vae is not None else self.shape[0]
        if sized is None or channels != 3:
            return view
        return view | {"transforms": sized["transforms"]}


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
    takes = set() if kind is None else set(inspect.signature(kind.__call__).parameters)
    unguided = set() if model.call.guidable else {"guidance_scale"}
    found = sampler_for(model.noise, model.sampling, model.companions.scheduler, takes - unguided, alone=alone)
    config: Any = model.network.config
    usual = getattr(model.companions.pipeline, "default_sample_size", None) or config.get("sample_size")
    return replace(found, call={**found.call, **model.call.asked(takes, usual)})


def _pipeline(model: DiffusersNetwork, kind: Any, scheduler: Any) -> Any:
    known = model.companions.pipeline
    if known is None:
        return kind(unet=model.network, scheduler=scheduler)
    parts = dict(known.components)
    wanted = inspect.signature(kind.__init__).parameters
    said = {name: value for name, value in known.config.items() if name in wanted and name not in parts}
    name = next(n for n in _NETWORKS if n in parts)
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


def _network(pipeline: Any) -> Any:
    found = [getattr(pipeline, name, None) for name in _NETWORKS]
    network = next((part for part in found if part is not None), None)
    if network is None:
        raise RecipeError(
            f"the pipeline {type(pipeline).__name__} has neither a unet nor a transformer; it has {', '.join(pipeline.components)}."
        )
    return network


def _release(pipeline: Any) -> None:
    """The pipeline keeps nothing of its network: that is the student's or the teacher's to hold."""
    pipeline.register_modules(**{name: None for name in _NETWORKS if getattr(pipeline, name, None) is not None})


def _network_alone(diffusers: Any, place: str | Path) -> Any:
    index = diffusers.DiffusionPipeline.load_config(place)
    name = next(n for n in _NETWORKS if index.get(n))
    return getattr(diffusers, index[name][1]).from_pretrained(place, subfolder=name)


def _conditions(network: Any, null_class: int | None) -> tuple[str, int | None]:
    config = network.config
    texts = config.get("cross_attention_dim") or config.get("joint_attention_dim") or config.get("caption_channels")
    if texts and "encoder_hidden_states" in inspect.signature(network.forward).parameters:
        return "text", None
    classes = config.get("num_class_embeds")
    if classes:
        if null_class is not None and not 0 <= null_class < classes:
            raise RecipeError(f"args.null_class is {null_class}; the network knows the labels 0 to {classes - 1}.")
        return "class", null_class
    if config.get("norm_type") == "ada_norm_zero" and config.get("num_embeds_ada_norm"):
        return "class", config.num_embeds_ada_norm  # the embedding after the last class
    return "none", None


def _scale(vae: Any, x: Values) -> tuple[Tensor | float, Tensor | float]:
    """What is taken from an autoencoder's latents, and what they are multiplied by then; a number per channel, where it says so."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, config.scaling_factor
    mean, std = (x.new_tensor(values).reshape(-1, *[1] * (x.dim() - 2)) for values in (mean, std))
    return mean, config.scaling_factor / std


def _middle(network: Any, block: str) -> str | None:
    if getattr(network, "mid_block", None) is not None:
        return "network.mid_block"
    blocks = getattr(network, "transformer_blocks", None)
    return f"network.transformer_blocks.{len(blocks) // 2}{block}" if blocks is not None else None


def _library(whose: str, place: str | Path) -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{whose}.model {place} is a diffusers pipeline: pip install 'limbeck[diffusion]' to read it."
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    return diffusers
