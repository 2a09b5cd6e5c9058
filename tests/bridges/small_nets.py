"""A small convolutional network and what describes an operation on it."""

from typing import Any

from torch import Tensor, nn


class Conv(nn.Module):
    """A map of 4 channels, its mean, a classifier."""

    def __init__(self, channels: int = 4, classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1), nn.BatchNorm2d(channels), nn.ReLU())
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


def structure() -> dict[str, Any]:
    """Of `limbeck.bridges.reused:reuse`: a teacher of 6 channels at 2x2."""
    return {
        "classifier": "fc",
        "features": "body",
        "shape": [4, 4, 4],
        "channels": 6,
        "size": [2, 2],
        "tail": "mean",
        "inputs": 6,
        "classes": 3,
        "bias": True,
        "reduction": 2,
        "positive": True,
    }
