"""Exits to logits after a stage of a student, whatever its architecture: convolutions, blocks of a transformer, or an MLP."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.bridges.base import Bridge, Shape
from limbeck.errors import RecipeError

_STAGES, _SIDE, _HEADS = 4, 7, 4


def exit_for(shape: Shape, stage: int, width: int, classes: int) -> Bridge:
    """The exit after stage 1 to 4 (4 is the last) from a feature of this shape (of one sample).

    Raises:
        RecipeError: a feature that is no map, vector or sequence of tokens.
    """
    kinds = {1: VectorExit, 2: TokenExit, 3: MapExit}
    if len(shape) not in kinds:
        raise RecipeError(
            f"no exit leads from a feature of {list(shape)} (of one sample) to logits: needed is a map, a vector or tokens. Name another place."
        )
    return kinds[len(shape)](shape, stage, width, classes)


class MapExit(Bridge):
    """4 - stage depthwise-separable convolutions of stride 2, a 1x1 one after the last stage; mean; linear.

    The channels double each time, and the last convolution gives `width`.

    Source: Hao et al. 2023, "One-for-All", section 3.3 and its code.
    """

    def __init__(self, shape: Shape, stage: int, width: int, classes: int):
        super().__init__()
        channels, steps = shape[0], []
        for left in reversed(range(_STAGES - stage)):
            wider = 2 * channels if left else width
            steps.append(_halving(channels, wider))
            channels = wider
        self.steps = nn.Sequential(*(steps or [nn.Conv2d(channels, width, 1)]))
        self.head = nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.steps(x).mean((2, 3)))

    def words(self) -> str:
        return f"{len(self.steps)} convolutions and a linear map"


class TokenExit(Bridge):
    """Patches merged two by two until their square is at most 7 wide; max(4 - stage, 1) transformer blocks; linear.

    Of tokens with one CLS token before the square that one is read at the end, else the mean is. Tokens that are no
    square are not merged. Blocks are normalised before (pre-norm), with 4 heads; `width` is rounded up to a multiple.

    Source: as `MapExit`.
    """

    def __init__(self, shape: Shape, stage: int, width: int, classes: int):
        super().__init__()
        width = -(-width // _HEADS) * _HEADS
        tokens, channels = shape
        self.extra, side = next(
            ((e, math.isqrt(tokens - e)) for e in (0, 1) if math.isqrt(tokens - e) ** 2 == tokens - e > e), (0, 0)
        )
        self.embed = nn.Linear(channels, width)
        self.merges, self.side = nn.ModuleList(), side
        while side > _SIDE:
            self.merges.append(nn.Linear(4 * width, width))
            side = -(-side // 2)
        blocks = [
            nn.TransformerEncoderLayer(
                width, _HEADS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(max(_STAGES - stage, 1))
        ]
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch classes"]:
        x = self.embed(x)
        if len(self.merges):
            cls, grid = x[:, : self.extra], x[:, self.extra :].unflatten(1, (self.side, self.side))
            for merge in self.merges:
                odd = grid.shape[1] % 2
                grid = F.pad(grid, (0, 0, 0, odd, 0, odd))
                pairs = grid.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [batch, rows, 2, columns, 2, width]
                grid = merge(pairs.transpose(2, 3).flatten(3))
            x = torch.cat([cls, grid.flatten(1, 2)], 1)
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0] if self.extra else x.mean(1))

    def words(self) -> str:
        return f"{len(self.blocks)} transformer blocks and a linear map"


class VectorExit(Bridge):
    """A hidden layer of `width` with ReLU, and a linear map (our choice: the paper has no students of plain vectors)."""

    def __init__(self, shape: Shape, stage: int, width: int, classes: int):
        super().__init__()
        self.steps = nn.Sequential(nn.Linear(shape[0], width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        return self.steps(x)

    def words(self) -> str:
        return "an MLP of one hidden layer"


def _halving(channels: int, wider: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, wider, 1, bias=False),
        nn.BatchNorm2d(wider),
        nn.ReLU(),
    )
