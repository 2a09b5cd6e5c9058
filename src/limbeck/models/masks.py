"""Networks that judge other networks: a mask over a feature's channels, and a gate over experts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class MaskNet(nn.Module):
    """A mask in (0, 1) per channel of a feature, from self-attention among the channels.

    A feature of d channels (averaged over what is left of its positions after a strided depthwise convolution, where
    it has positions) becomes d tokens of width e: Linear(d, e d), multi-head attention with q = k = v and no
    residual, Linear(e, 1), sigmoid. e = (d // (factor * heads)) * heads, at least `heads`.

    Args:
        shape: of the feature, without the batch: [d], or [d, positions...].
        heads, factor: n and f of the paper's code (3 and 2).
        width: e directly, for wide layers (the e d^2 parameters of the first layer dominate).
    """

    def __init__(self, shape: tuple[int, ...], *, heads: int = 3, factor: int = 2, width: int | None = None):
        super().__init__()
        channels = shape[0]
        self.positions = len(shape) - 1 if any(size > 1 for size in shape[1:]) else 0
        if self.positions:
            conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[self.positions]
            norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[self.positions]
            self.stem: nn.Module = nn.Sequential(
                conv(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
                conv(channels, channels, 1, bias=False),
                norm(channels),
                nn.ReLU(),
            )
        e = width or max(channels // (factor * heads), 1) * heads
        self.spread = nn.Linear(channels, e * channels)
        self.attention = nn.MultiheadAttention(e, heads, batch_first=True)
        self.judge = nn.Linear(e, 1)

    def forward(self, feature: Float[Tensor, "batch channels ..."]) -> Float[Tensor, "batch channels ..."]:
        """The mask, shaped so that it multiplies the feature."""
        channels = self.stem(feature).flatten(2).mean(-1) if self.positions else feature.flatten(1)
        tokens = self.spread(channels).unflatten(-1, (channels.shape[1], -1))
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        mask = self.judge(attended).squeeze(-1).sigmoid()
        return mask.reshape(*mask.shape, *[1] * (feature.dim() - 2))


class Gate(nn.Module):
    """Which specialised teachers a sample learns from, read off the student's logits: a softmax over the experts."""

    def __init__(self, logits_shape: tuple[int, ...], experts: int):
        super().__init__()
        classes = logits_shape[0]
        if len(logits_shape) == 1:
            self.layers: nn.Module = nn.Sequential(nn.Linear(classes, 2 * classes), nn.Linear(2 * classes, experts))
        else:
            self.layers = nn.Sequential(
                nn.Conv2d(classes, 2 * classes, 1),
                nn.ReLU(),
                nn.Conv2d(2 * classes, 2 * classes, 3, stride=2, padding=1, groups=2 * classes),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(2 * classes, experts),
            )

    def forward(self, logits: Float[Tensor, "batch classes ..."]) -> Float[Tensor, "batch experts"]:
        """Probabilities of the experts."""
        return self.layers(logits).softmax(-1)
