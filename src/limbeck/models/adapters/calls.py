"""How networks of diffusers are called: what their forward is given, and what `encode_prompt` of their pipelines gives.

One class per family, chosen by the network's own class. A network that is called otherwise is refused: times on another
scale, or a sign the other way round, would give numbers without an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import RecipeError

Values = Float[Tensor, "batch ..."]
NAMES = ("condition", "pooled", "mask")
"""What a text is encoded as: a vector per token, one of the whole text, which tokens count."""


class Call:
    """A noisy sample, a time, and a label or an encoded text: Stable Diffusion, DiT, U-Nets on pixels.

    Args:
        conditions: `none`, `class` or `text`.
        sides: height and width of a sample as it is denoised.
        scale: how many pixels one of its numbers is high and wide.
        guidance: the scale of guidance that is shown to a network which was distilled from a guided one.
    """

    block = ""  # which part of a transformer block's value is the sample's
    guidable = True  # whether the pipeline's guidance_scale is that of two answers
    instructed = False  # whether its pipeline puts an instruction before a prompt, and none before what is not wanted

    def __init__(
        self, network: Any, conditions: str, sides: Sequence[int], scale: int, guidance: float | None = None
    ) -> None:
        takes = inspect.signature(network.forward).parameters
        self.sample = "sample" if "sample" in takes else "hidden_states"
        self.condition = {"class": "class_labels", "text": "encoder_hidden_states"}.get(conditions)
        self.shape = (self.channels(network.config), *sides)
        self.patch = network.config.get("patch_size") or 1
        self.scale, self.guidance = scale, guidance
        self.options: dict[str, Any] = {}  # what was said of it in `args`

    def channels(self, config: Any) -> int:
        """How many channels a sample has."""
        return int(config.in_channels)

    @property
    def tokens(self) -> int:
        """How many tokens a transformer sees a sample as."""
        return (self.shape[1] // self.patch) * (self.shape[2] // self.patch)

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        """The arguments of the network's forward; `t` as its scheduler feeds it."""
        words: dict[str, Any] = {self.sample: x, "timestep": t}
        if self.condition is not None:
            words[self.condition] = _like(given["condition"], x)
        return words

    def said(self, value: Tensor, x: Values) -> Values:
        """What the network said of `x`; a learnt variance, which stands behind it, is left out."""
        return value[:, : x.shape[1]]

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        """The values of `encode_prompt` by name."""
        return {"condition": found[0]}

    def whole(self, given: Mapping[str, Tensor], x: Values) -> Tensor:
        """The vector of the whole text."""
        if "pooled" not in given:
            raise RecipeError(
                f"this network is shown each text twice, as a vector per token and as one of the whole ({type(self).__name__}), and the data hold only the "
                "first. Give the whole pipeline folder and a column of texts, which its own encoders encode."
            )
        return _like(given["pooled"], x)

    def pixels(self, x: Values) -> list[int]:
        """Height and width of the picture."""
        return [self.scale * side for side in x.shape[-2:]]

    def handed(self, x: Values) -> Tensor:
        """Noise as its pipeline takes it (`latents`)."""
        return x

    def returned(self, latents: Tensor, like: Values) -> Values:
        """The inverse of `handed`, to the shape of `like`."""
        return latents

    def asked(self, takes: Collection[str], usual: Any) -> dict[str, Any]:
        """The words with which its pipeline is called, beside steps and guidance; `usual`: the size of a sample that the pipeline takes by itself."""
        sides = list(self.shape[1:])
        if usual is None or list(sides_of(usual)) == sides or "height" not in takes:
            return {}
        return {"height": self.scale * sides[0], "width": self.scale * sides[1]}


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


class Packed(Joint):
    """FLUX: latents in squares of 2 x 2, told where each lies, times in [0, 1], and the scale of guidance where it was distilled."""

    guidable = False  # it is what the network is shown

    def __init__(self, network: Any, *args: Any) -> None:
        super().__init__(network, *args)
        self.patch = 2
        if network.config.guidance_embeds:
            self.guidance = 3.5 if self.guidance is None else self.guidance  # that of its pipeline

    def channels(self, config: Any) -> int:
        return int(config.in_channels) // 4

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        high, wide = (side // 2 for side in x.shape[-2:])
        rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
        words = super().words(packed(x), t / 1000, given)
        told = words["encoder_hidden_states"].shape[1]
        words |= {"img_ids": places.to(x), "txt_ids": torch.zeros(told, 3).to(x)}
        return words | {"guidance": None if self.guidance is None else x.new_full((len(x),), self.guidance)}

    def said(self, value: Tensor, x: Values) -> Values:
        return unpacked(value, x)

    def handed(self, x: Values) -> Tensor:
        return packed(x)

    def returned(self, latents: Tensor, like: Values) -> Values:
        return unpacked(latents, like)

    def asked(self, takes: Collection[str], usual: Any) -> dict[str, Any]:
        shown = {} if self.guidance is None else {"guidance_scale": self.guidance}
        return super().asked(takes, usual) | shown

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        return {"condition": found[0], "pooled": found[1]}


def packed(x: Float[Tensor, "batch channels high wide"]) -> Float[Tensor, "batch places 4*channels"]:
    """Squares of 2 x 2 numbers as tokens, row by row."""
    n, c, high, wide = x.shape
    return x.reshape(n, c, high // 2, 2, wide // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * c)


def unpacked(
    tokens: Float[Tensor, "batch places 4*channels"], like: Float[Tensor, "batch channels high wide"]
) -> Float[Tensor, "batch channels high wide"]:
    """The inverse of `packed`, to the shape of `like`."""
    n, c, high, wide = like.shape
    return tokens.reshape(n, high // 2, wide // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


FAMILIES: dict[str, type[Call]] = {
    "UNet2DModel": Call,
    "UNet2DConditionModel": Call,
    "Transformer2DModel": Call,
    "DiTTransformer2DModel": Call,
    "PixArtTransformer2DModel": Captioned,
    "SanaTransformer2DModel": Instructed,
    "SD3Transformer2DModel": Joint,
    "FluxTransformer2DModel": Packed,
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
    if config.get("out_channels") not in (None, config.in_channels, 2 * config.in_channels):
        raise RecipeError(
            f"this {name} takes {config.in_channels} channels and gives {config.out_channels}: it is shown more than the noisy sample, as networks are that "
            "fill in, enlarge or change a picture. Needed is one that makes a picture of noise."
        )
    kind = Sized if added == "text_time" else FAMILIES[name]
    said, size = size is not None, size or config.get("sample_size") or getattr(pipeline, "default_sample_size", None)
    size = 128 if size is None and kind is Packed else size
    if size is None:
        raise RecipeError(f"this {name} does not say how large its samples are. Say it: args.size=64, or [64, 96]")
    sides = sides_of(size)
    if kind is Packed and any(side % 2 for side in sides):
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


def sides_of(size: int | Sequence[int]) -> list[int]:
    """Height and width."""
    return [int(side) for side in size] if isinstance(size, Sequence) else [int(size)] * 2


def _like(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x.dtype) if value.is_floating_point() else value
