"""Bridges between vectors, tokens and maps."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.bridges.base import Bridge


class Pool(Bridge):
    """The mean over all positions: tokens [batch, tokens, width] (channels=-1) or maps (channels=1) to vectors."""

    def __init__(self, *, channels: int = 1):
        super().__init__()
        self.channels = channels

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
        return x.movedim(self.channels, 1).flatten(2).mean(2)

    def words(self) -> str:
        return "the mean over its positions"


class Spread(Bridge):
    """A vector repeated over all positions: all that can be done when nothing says what belongs where."""

    def __init__(self, size: tuple[int, ...], *, channels: int = 1):
        super().__init__()
        self.size, self.channels = tuple(size), channels

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch ..."]:
        spread = x.view(*x.shape, *[1] * len(self.size)).expand(*x.shape, *self.size)
        return spread.movedim(1, self.channels)

    def words(self) -> str:
        return f"the same vector at each of {'x'.join(map(str, self.size))} positions"


class TokensToMap(Bridge):
    """Tokens [batch, extra + height * width, width] as a map, row by row. The first `extra` ones (CLS) are left out."""

    def __init__(self, size: tuple[int, int], *, extra: int = 0):
        super().__init__()
        self.size, self.extra = tuple(size), extra

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch width height width2"]:
        return x[:, self.extra :].transpose(1, 2).unflatten(2, self.size)

    def words(self) -> str:
        without = " without the first" if self.extra else ""
        return f"its tokens{without} laid out as a map of {self.size[0]}x{self.size[1]}"


class MapToTokens(Bridge):
    """A map as tokens, row by row, with the mean over the map as `extra` further tokens before them (in place of CLS)."""

    def __init__(self, *, extra: int = 0):
        super().__init__()
        self.extra = extra

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch tokens channels"]:
        tokens = x.flatten(2).transpose(1, 2)
        if not self.extra:
            return tokens
        return torch.cat([tokens.mean(1, keepdim=True).expand(-1, self.extra, -1), tokens], 1)

    def words(self) -> str:
        before = ", its mean before them" if self.extra else ""
        return f"its positions read as tokens{before}"
