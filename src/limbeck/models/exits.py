"""Exits inside a network: small heads that classify from an early feature, for training only."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from limbeck import bridges


def pooled_head(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Logits from a feature of this shape (of one sample): the mean over its positions, then a linear map."""
    width = shape[0] if len(shape) > 2 else shape[-1]
    return nn.Sequential(bridges.auto(shape, (width,)), nn.Linear(width, classes))


class Exit(nn.Module):
    """Brings an early feature to the shape of the last one and classifies it from there.

    Maps are halved by depthwise-separable convolutions (3x3, stride 2, then 1x1; normalised over each sample; ReLU),
    widening on the way, until they are no larger than the last; what then still differs is left to the automatic bridge.
    """

    def __init__(self, shape: tuple[int, ...], last: tuple[int, ...], classes: int):
        super().__init__()
        steps: list[nn.Module] = []
        while len(shape) == len(last) == 3 and shape[1] > last[1]:
            channels, size = shape[0], [(n + 1) // 2 for n in shape[1:]]
            wider = min(2 * channels, last[0]) if size[0] > last[1] else last[0]
            steps.append(_halving(channels, wider))
            shape = (wider, *size)
        self.adapt = nn.Sequential(*steps, bridges.auto(shape, last))
        self.head = pooled_head(last, classes)

    def forward(
        self, feature: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch classes"]]:
        adapted = self.adapt(feature)
        return adapted, self.head(adapted)


def _halving(channels: int, wider: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, wider, 1, bias=False),
        nn.GroupNorm(1, wider),  # over the sample alone: pieces of a batch give what the whole gives
        nn.ReLU(),
    )
