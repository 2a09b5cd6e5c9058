"""diffusers: the U-Net or transformer of a pipeline folder with its scheduler, as a denoising network; new ones by `build`.

The scheduler says what noise the network knows and what it predicts; an autoencoder and text encoders come along frozen, once
per folder, and are no part of the network: they are neither trained nor counted nor copied.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck.diffusion.network import DiffusionNetwork, Given
from limbeck.errors import RecipeError, nearest
from limbeck.models.adapters.schedulers import noise_of, scheduler_for
from limbeck.sources import Source

PIPELINE = "pipeline"  # where a student's folder has the pipeline that diffusers opens by itself
_NETWORKS = ("unet", "transformer")
_OURS = ("head", "null_class", "pixels", "checkpointing", "scheduler")
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
        checkpointing: bool = False,
    ) -> None:
        noise, known, std = noise_of(companions.scheduler)
        if head is not None and head != known:
            raise RecipeError(
                f"args.head is {head}, and the scheduler of this pipeline ({type(companions.scheduler).__name__}, prediction_type "
                f"{companions.scheduler.config.get('prediction_type')}) says {known}. One of them contradicts what the network was trained for: mend scheduler/scheduler_config.json, or leave args.head out."
            )
        config: Any = network.config
        size = config.sample_size
        sides = tuple(size) if isinstance(size, Sequence) else (size, size)
        super().__init__(noise, known, shape=(config.in_channels, *sides), data_std=std)
        self.network, self.companions = network, companions
        if pixels not in ("unit", "signed", "latents"):
            raise RecipeError(f"args.pixels '{pixels}': {nearest(pixels, ['unit', 'signed', 'latents'])}")
        self.pixels = pixels
        self.takes = set(inspect.signature(network.forward).parameters)
        self.conditions, self.null_class = _conditions(network, null_class)
        self.guidable = self.conditions == "text" or self.null_class is not None
        self.middle = _middle(network)
        self._nothing: dict[str, Tensor] = {}
        if checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]

    def predict(self, x: Values, t: Float[Tensor, "batch"], **given: Tensor) -> Values:
        condition = given.get("condition")
        first = "sample" if "sample" in self.takes else "hidden_states"
        words: dict[str, Any] = {first: x, "timestep": self.noise.fed(t)}
        if self.conditions == "class":
            words["class_labels"] = condition
        elif self.conditions == "text":
            words["encoder_hidden_states"] = _like(condition, x)
            if "mask" in given and "encoder_attention_mask" in self.takes:
                words["encoder_attention_mask"] = given["mask"]
            if "pooled_projections" in self.takes:
                words["pooled_projections"] = _like(given["pooled"], x)
            if "added_cond_kwargs" in self.takes:
                words["added_cond_kwargs"] = self._added(x, given)
        value = self.network(**words, return_dict=False)[0]
        return value[:, : x.shape[1]] if value.shape[1] == 2 * x.shape[1] else value  # a learnt variance is left out

    def _added(self, x: Values, given: Mapping[str, Tensor]) -> dict[str, Tensor | None] | None:
        if "pooled" in given:  # as SDXL has it: sizes and crops of a whole picture
            side = 8 * x.shape[-1]
            ids = torch.tensor([side, side, 0, 0, side, side], device=x.device).expand(len(x), -1)
            return {"text_embeds": _like(given["pooled"], x), "time_ids": ids}
        return {"resolution": None, "aspect_ratio": None} if "Transformer" in type(self.network).__name__ else None

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

    @torch.no_grad()
    def encoded(self, x: Values) -> Values:
        x = x * 2 - 1 if self.pixels == "unit" else x
        vae = self._autoencoder()
        if vae is None:
            return x
        self.companions.near(x.device)
        found = vae.encode(x.to(vae.dtype))
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (latents.to(x.dtype) - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor

    def decoded(self, x: Values) -> Values:
        vae = self._autoencoder()
        if vae is not None:
            self.companions.near(x.device)
            latents = x / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
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
        found = self.companions.pipeline.encode_prompt(list(condition), **options)
        named = {"condition": found[0]}
        if "encoder_attention_mask" in self.takes and len(found) > 1 and found[1] is not None:
            named["mask"] = found[1]
        elif len(found) > 2 and found[2] is not None:
            named["pooled"] = found[2]
        return named

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
        """The condition of an empty text (zeros where there is no encoder to ask), encoded once."""
        if not self._nothing:
            asked = self.companions.part("encode_prompt") is not None
            self._nothing = self.understood([""]) if asked else {"condition": torch.zeros_like(given["condition"][:1])}
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
        args: `head` (what it is believed to predict; must agree with the scheduler), `null_class`, `pixels`, `checkpointing`; see
            `DiffusersNetwork`. `scheduler`: the folder of the scheduler, for a network by itself.

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
            pipeline = diffusers.DiffusionPipeline.from_pretrained(place)
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
    made = kind.from_config({**given.network.config, **own})
    return DiffusersNetwork(made, given.companions, **{k: v for k, v in changes.items() if k in _OURS})


def keep(model: Any, folder: Path, origin: Path | None) -> None:
    """The whole pipeline beside the student's weights, in a folder that diffusers opens without us."""
    save_pipeline(model, folder / PIPELINE)


def save_pipeline(model: DiffusersNetwork, folder: Path) -> None:
    """Write a pipeline of diffusers: this network, what stood around it, and a scheduler that samples as the network is sampled."""
    import diffusers

    network: Any = model.network
    scheduler = scheduler_for(model.noise, model.sampling, model.companions.scheduler)
    pipeline = model.companions.pipeline
    if pipeline is None:
        kind: Any = diffusers.DiTPipeline if "Transformer" in type(network).__name__ else diffusers.DDPMPipeline
        pipeline = kind(
            **{"unet" if kind is diffusers.DDPMPipeline else "transformer": network, "scheduler": scheduler}
        )
        pipeline.save_pretrained(folder)
        return
    parts = dict(pipeline.components)
    name = next(n for n in _NETWORKS if n in parts)
    type(pipeline)(**parts | {name: network, "scheduler": scheduler}).save_pretrained(folder)


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


def _middle(network: Any) -> str | None:
    if getattr(network, "mid_block", None) is not None:
        return "network.mid_block"
    blocks = getattr(network, "transformer_blocks", None)
    return f"network.transformer_blocks.{len(blocks) // 2}" if blocks is not None else None


def _like(value: Tensor | None, x: Tensor) -> Tensor:
    assert value is not None
    return value.to(x.dtype)


def _library(whose: str, place: str | Path) -> Any:
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{whose}.model {place} is a diffusers pipeline: pip install 'limbeck[diffusion]' to read it."
        ) from error
    diffusers.utils.logging.disable_progress_bar()
    return diffusers
