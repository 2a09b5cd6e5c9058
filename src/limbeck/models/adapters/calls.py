"""How networks of diffusers are called: what their forward is given, and what `encode_prompt` of their pipelines gives.

One class per family, chosen by the network's own class. A network that is called otherwise is refused: times on another
scale, or a sign the other way round, would give numbers without an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.models.adapters.call import Call, Values, sides_of
from limbeck.models.adapters.packed_calls import Framed, Packed, Placed


class Sized(Call):
    """Stable Diffusion XL: also one vector of the whole text, and sizes: of a picture that was neither cut nor scaled."""

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        size = self.pixels(x)
        ids = torch.tensor([*size, 0, 0, *size], device=x.device, dtype=x.dtype).expand(len(x), -1)
        added = {"text_embeds": self.whole(given, x), "time_ids": ids}
        return super().words(x, t, given) | {"added_cond_kwargs": added}

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        return {"condition": found[0], "pooled": found[2]}


class Masked(Call):
    """Networks that are told which tokens of the text count."""

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        words = super().words(x, t, given)
        return words | ({"encoder_attention_mask": given["mask"]} if "mask" in given else {})

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        return {"condition": found[0], "mask": found[1]}


class Captioned(Masked):
    """PixArt: also which tokens of the text count, and, where the network was trained so, the picture's size and form."""

    def __init__(self, network: Any, *args: Any) -> None:
        super().__init__(network, *args)
        self.sized = network.use_additional_conditions

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.sized:
            high, wide = self.pixels(x)
            size = torch.tensor([high, wide, high / wide], device=x.device, dtype=x.dtype).expand(len(x), -1)
            added = {"resolution": size[:, :2], "aspect_ratio": size[:, 2:]}
        return super().words(x, t, given) | {"added_cond_kwargs": added}


class Instructed(Masked):
    """Sana: also which tokens of the text count, times on a scale of the network's own, and prompts behind an instruction."""

    instructed = True

    def __init__(self, network: Any, *args: Any) -> None:
        super().__init__(network, *args)
        self.pace = network.config.timestep_scale

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().words(x, self.pace * t, given)


class Joint(Call):
    """Stable Diffusion 3: text and picture in one sequence, and one vector of the whole text."""

    block = ".1"

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().words(x, t, given) | {"pooled_projections": self.whole(given, x)}

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        return {"condition": found[0], "pooled": found[2]}


class Merged(Call):
    """AuraFlow: times in [0, 1], and, behind its first blocks, text and picture in one sequence."""

    blocks, block = "joint_transformer_blocks", ".1"  # the first ones

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().words(x, t / 1000, given)


class Reversed(Masked):
    """Lumina 2: times and velocities that run from noise to data, which tokens of the text count, and prompts behind an instruction."""

    instructed = True
    blocks = "noise_refiner"  # behind it text and picture are one sequence, longer for longer texts

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().words(x, 1 - t / 1000, given)

    def said(self, value: Tensor, x: Values) -> Values:
        return -value

    def asked(self, takes: Collection[str], usual: Any) -> dict[str, Any]:
        return super().asked(takes, usual) | {"cfg_normalization": False}  # guided as any other


FAMILIES: dict[str, type[Call]] = {
    "UNet2DModel": Call,
    "UNet2DConditionModel": Call,
    "Transformer2DModel": Call,
    "DiTTransformer2DModel": Call,
    "PixArtTransformer2DModel": Captioned,
    "SanaTransformer2DModel": Instructed,
    "SD3Transformer2DModel": Joint,
    "AuraFlowTransformer2DModel": Merged,
    "Lumina2Transformer2DModel": Reversed,
    "FluxTransformer2DModel": Placed,
    "QwenImageTransformer2DModel": Framed,
}


def call_of(
    network: Any,
    conditions: str,
    *,
    size: int | Sequence[int] | None = None,
    pipeline: Any = None,
    guidance: float | None = None,
) -> Call:
    """How this network is called.

    Args:
        size: height and width of a sample as it is denoised; None: what the network's configuration says, or its pipeline.
        guidance: for networks that are shown a scale of guidance.

    Raises:
        RecipeError: a network of another make, one that is shown more than the noisy sample, an unknown size, or a scale for a network that is shown none.
    """
    name, config = type(network).__name__, network.config
    if name not in FAMILIES:
        raise RecipeError(
            f"how a {name} is called (its times, its conditions, the sign of what it says) is not known here; known are {', '.join(FAMILIES)}. "
            "Wrap it yourself: limbeck.diffusion.network:Plain, around a module of yours that takes (x, time, condition)."
        )
    added = config.get("addition_embed_type")
    if added not in (None, "text", "text_time"):
        raise RecipeError(
            f"this {name} is shown more than a text (addition_embed_type '{added}'), which no data column holds."
        )
    kind = Sized if added == "text_time" else FAMILIES[name]
    squares = issubclass(kind, Packed)
    known = {None, config.in_channels, config.in_channels // 4 if squares else 2 * config.in_channels}
    if config.get("out_channels") not in known:
        raise RecipeError(
            f"this {name} takes {config.in_channels} channels and gives {config.out_channels}: it is shown more than the noisy sample, as networks are that "
            "fill in, enlarge or change a picture. Needed is one that makes a picture of noise."
        )
    said, size = size is not None, size or config.get("sample_size") or getattr(pipeline, "default_sample_size", None)
    size = 128 if size is None and squares else size
    if size is None:
        raise RecipeError(f"this {name} does not say how large its samples are. Say it: args.size=64, or [64, 96]")
    sides = sides_of(size)
    if squares and any(side % 2 for side in sides):
        raise RecipeError(
            f"args.size {sides}: this {name} sees latents in squares of 2 x 2, so height and width must be even."
        )
    call = kind(network, conditions, sides, getattr(pipeline, "vae_scale_factor", 8), guidance)
    if guidance is not None and not config.get("guidance_embeds"):
        raise RecipeError(
            f"args.embedded_guidance is {guidance}, and this {name} is not shown a scale of guidance. Leave it out; method.guidance guides any teacher."
        )
    given = {"size": sides if said else None, "embedded_guidance": guidance}
    call.options = {name: value for name, value in given.items() if value is not None}
    return call
