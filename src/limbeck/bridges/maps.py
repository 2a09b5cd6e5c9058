"""Bridges between maps: channels, and sizes in space or time."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.bridges.base import Bridge

_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Conv1x1(Bridge):
    """An affine map of the channels at every position: [batch, channels, time], [batch, channels, height, width], ..."""

    def __init__(self, channels: int, to: int, *, bias: bool = True):
        super().__init__()
        self.map = nn.Conv1d(channels, to, 1, bias=bias)

    def forward(self, x: Float[Tensor, "batch channels *positions"]) -> Float[Tensor, "batch to *positions"]:
        return self.map(x.flatten(2)).unflatten(2, x.shape[2:])

    def words(self) -> str:
        return f"a 1x1 convolution from {self.map.in_channels} to {self.map.out_channels} channels"


class Resample(Bridge):
    """Another number of positions, without parameters: one, two or three dimensions of time and space.

    A dimension that shrinks is averaged over adaptive windows, one that grows is interpolated linearly between the
    centres of its positions. Constant maps stay what they are.

    Args:
        size: the positions to give, (time,), (height, width) or (depth, height, width).
        channels: which dimension holds the channels: 1 for maps, -1 for tokens.
    """

    def __init__(self, size: tuple[int, ...], *, channels: int = 1):
        super().__init__()
        self.size, self.channels = tuple(size), channels

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        x = x.movedim(self.channels, 1)
        shrunk = tuple(min(now, then) for now, then in zip(x.shape[2:], self.size))
        if shrunk != x.shape[2:]:
            x = _POOLS[len(shrunk)](x, shrunk)
        if shrunk != self.size:
            x = F.interpolate(x, self.size, mode=_MODES[len(shrunk)], align_corners=False)
        return x.movedim(1, self.channels)

    def words(self) -> str:
        return f"resampled to {'x'.join(map(str, self.size))} positions"
