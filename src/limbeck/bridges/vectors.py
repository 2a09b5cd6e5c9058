"""Bridges between widths: the last dimension of vectors and of tokens."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.bridges.base import Bridge


class Linear(Bridge):
    """An affine map of the last dimension: [batch, width], [batch, tokens, width], any leading dimensions."""

    def __init__(self, width: int, to: int, *, bias: bool = True):
        super().__init__()
        self.map = nn.Linear(width, to, bias=bias)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch to"]:
        return self.map(x)

    def words(self) -> str:
        return f"a linear map from {self.map.in_features} to {self.map.out_features}"


class MLP(Bridge):
    """An affine map, GELU, and another, of the last dimension. `hidden` defaults to the larger of the two widths."""

    def __init__(self, width: int, to: int, *, hidden: int | None = None):
        super().__init__()
        hidden = hidden or max(width, to)
        self.sizes = (width, hidden, to)
        self.map = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, to))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch to"]:
        return self.map(x)

    def words(self) -> str:
        return f"an MLP of widths {'-'.join(map(str, self.sizes))}"
