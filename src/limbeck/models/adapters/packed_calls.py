"""Calls of networks that see latents in squares of 2 x 2: FLUX, Qwen-Image."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from limbeck.models.adapters.call import Call, Values


class Packed(Call):
    """Latents in squares of 2 x 2, as tokens, and times in [0, 1]."""

    block = ".1"
    guidable = False  # guidance_scale is what the network is shown

    def __init__(self, network: Any, *args: Any) -> None:
        super().__init__(network, *args)
        self.patch = 2

    def channels(self, config: Any) -> int:
        return int(config.in_channels) // 4

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        return super().words(packed(x), t / 1000, given)

    def said(self, value: Tensor, x: Values) -> Values:
        return unpacked(value, x)

    def handed(self, x: Values) -> Tensor:
        return packed(x)

    def returned(self, latents: Tensor, like: Values) -> Values:
        return unpacked(latents, like)


class Placed(Packed):
    """FLUX: squares that are told where each lies, one vector of the whole text, and the scale of guidance where it was distilled."""

    def __init__(self, network: Any, *args: Any) -> None:
        super().__init__(network, *args)
        if network.config.guidance_embeds:
            self.guidance = 3.5 if self.guidance is None else self.guidance  # that of its pipeline

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        high, wide = (side // 2 for side in x.shape[-2:])
        rows, columns = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
        words = super().words(x, t, given) | {"pooled_projections": self.whole(given, x)}
        told = words["encoder_hidden_states"].shape[1]
        words |= {"img_ids": places.to(x), "txt_ids": torch.zeros(told, 3).to(x)}
        return words | {"guidance": None if self.guidance is None else x.new_full((len(x),), self.guidance)}

    def asked(self, takes: Collection[str], usual: Any) -> dict[str, Any]:
        shown = {} if self.guidance is None else {"guidance_scale": self.guidance}
        return super().asked(takes, usual) | shown

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        return {"condition": found[0], "pooled": found[1]}


class Framed(Packed):
    """Qwen-Image: latents out of an autoencoder of films, of which a picture is the one frame, and which tokens of the text count."""

    longest = 512  # what its pipeline hears of a text; filled up to that, texts of all batches have one shape

    def words(self, x: Values, t: Float[Tensor, "batch"], given: Mapping[str, Tensor]) -> dict[str, Any]:
        high, wide = (side // 2 for side in x.shape[-2:])
        words = super().words(x, t, given) | {"img_shapes": [[(1, high, wide)]] * len(x)}
        return words | ({"encoder_hidden_states_mask": given["mask"]} if "mask" in given else {})

    def named(self, found: Sequence[Any]) -> dict[str, Tensor]:
        condition, mask = found
        mask = condition.new_ones(condition.shape[:2], dtype=torch.long) if mask is None else mask  # None: all count
        more = self.longest - condition.shape[1]
        return {"condition": pad(condition, (0, 0, 0, more)), "mask": pad(mask, (0, more))}

    def filmed(self, x: Values) -> Tensor:
        return x[:, :, None]

    def still(self, value: Tensor) -> Values:
        return value[:, :, 0]

    def asked(self, takes: Collection[str], usual: Any) -> dict[str, Any]:
        return super().asked(takes, usual) | {"true_cfg_scale": 1}


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
