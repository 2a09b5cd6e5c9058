"""A call of a network of diffusers: what its forward is given, and what `encode_prompt` of its pipeline gives."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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

    blocks = "transformer_blocks"  # the network's own name of them
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
            words[self.condition] = like(given["condition"], x)
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
        return like(given["pooled"], x)

    def pixels(self, x: Values) -> list[int]:
        """Height and width of the picture."""
        return [self.scale * side for side in x.shape[-2:]]

    def filmed(self, x: Values) -> Tensor:
        """Pictures, or their latents, as its autoencoder takes them."""
        return x

    def still(self, value: Tensor) -> Values:
        """The inverse of `filmed`."""
        return value

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


def sides_of(size: int | Sequence[int]) -> list[int]:
    """Height and width."""
    return [int(side) for side in size] if isinstance(size, Sequence) else [int(size)] * 2


def like(value: Tensor, x: Tensor) -> Tensor:
    """A condition in the type of the sample; labels and masks as they are."""
    return value.to(x.dtype) if value.is_floating_point() else value
