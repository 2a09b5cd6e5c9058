"""A network of diffusers as a denoising network: its noise and head by its scheduler, its conditions by its configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck.diffusion.network import DiffusionNetwork, Given
from limbeck.errors import RecipeError, nearest
from limbeck.models.adapters.call import NAMES, Call
from limbeck.models.adapters.calls import call_of
from limbeck.models.adapters.companions import Companions
from limbeck.models.adapters.schedulers import noise_of

Values = Float[Tensor, "batch ..."]
_AS_CALLED = ("prompt_2", "prompt_3", "complex_human_instruction", "max_sequence_length")
"""What pipelines tell their encode_prompt beside the texts."""


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
        self.middle = _middle(network, call)
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
        factor = vae.config.get("scaling_factor", 1.0) if vae is not None else 1.0
        fits = {"were not": 0.4 < std * factor < 2.5, "were twice": 0.4 < std / factor < 2.5}
        if self.pixels == "latents" and not 0.4 < std < 2.5 and any(fits.values()):
            how = next(words for words, would in fits.items() if would)
            raise RecipeError(
                f"the latents have a standard deviation of {std:.3g}, and the {whose} denoises such of about 1: they {how} multiplied by the "
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
        found = vae.encode(self.call.filmed(x).to(vae.dtype))
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found[0]
        centre, factor = _scale(vae, x)
        return (self.call.still(latents).to(x.dtype) - centre) * factor

    def decoded(self, x: Values) -> Values:
        vae = self._autoencoder()
        if vae is not None:
            self.companions.near(x.device)
            centre, factor = _scale(vae, x)
            latents = x / factor + centre
            made = vae.decode(self.call.filmed(latents).to(vae.dtype), return_dict=False)[0]
            x = self.call.still(made).to(x.dtype)
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
        return self._heard(list(condition))

    @torch.no_grad()
    def _heard(self, texts: list[str], unwanted: bool = False) -> dict[str, Tensor]:
        """Texts as the pipeline encodes prompts; `unwanted`: as it encodes what it guides away from, which is the empty text."""
        device = next(self.network.parameters()).device
        self.companions.near(device)
        takes = inspect.signature(self.companions.pipeline.encode_prompt).parameters
        usual = inspect.signature(type(self.companions.pipeline).__call__).parameters
        options = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": unwanted}
        options |= {name: usual[name].default for name in _AS_CALLED if name in usual}
        options = {k: v for k, v in options.items() if k in takes}
        with self.companions.whole(self.network) as pipeline:
            found = pipeline.encode_prompt(texts, **options)
        return self.call.named(found[len(found) // 2 :] if unwanted else found)

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
        self._nothing = self._nothing or self._heard([""], unwanted=self.call.instructed)
        return self._nothing

    def view_for(self, columns: Any) -> Any:
        """Pictures brought to the network's size, and the column of the condition."""
        from limbeck.models.adapters.columns import picture_view

        view = super().view_for(columns)
        if view is None or self.pixels == "latents" or view.get("keys") != ["image"]:
            return view
        vae = self._autoencoder()
        factor = 1 if vae is None else _factor(vae)
        assert self.shape is not None
        sized = picture_view(columns, None, [0.0] * 3, [1.0] * 3, [factor * side for side in self.shape[1:]])
        channels = self.shape[0] if vae is None else vae.config.get("in_channels") or vae.config.input_channels
        if sized is None or channels != 3:
            return view
        return view | {"transforms": sized["transforms"]}


def _conditions(network: Any, null_class: int | None) -> tuple[str, int | None]:
    config = network.config
    texts = ("cross_attention_dim", "joint_attention_dim", "caption_channels", "cap_feat_dim")
    if (
        any(config.get(name) for name in texts)
        and "encoder_hidden_states" in inspect.signature(network.forward).parameters
    ):
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
    return mean, config.get("scaling_factor", 1.0) / std


def _factor(vae: Any) -> int:
    """How many pixels one of an autoencoder's numbers is high and wide."""
    return getattr(vae, "spatial_compression_ratio", None) or 2 ** (len(vae.config.block_out_channels) - 1)


def _middle(network: Any, call: Call) -> str | None:
    if getattr(network, "mid_block", None) is not None:
        return "network.mid_block"
    blocks = getattr(network, call.blocks, None)
    return f"network.{call.blocks}.{len(blocks) // 2}{call.block}" if blocks else None
