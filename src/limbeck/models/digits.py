"""Small networks for `av-digits`: one per modality and their fusion; all return logits [batch, classes]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ImageCNN(nn.Module):
    """Two 3x3 convolutions, each with ReLU and 2x2 max-pooling, then two linear layers.

    Args:
        width: channels of the first convolution; the second has twice as many, `fc1` four times.
        size: height and width of the images.
    """

    def __init__(self, width: int = 24, classes: int = 10, size: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width * (size // 4) ** 2, 4 * width)
        self.fc2: nn.Module = nn.Linear(4 * width, classes)

    def features(self, image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch features"]:
        x = nn.functional.max_pool2d(self.conv1(image).relu(), 2)
        x = nn.functional.max_pool2d(self.conv2(x).relu(), 2)
        return self.fc1(x.flatten(1)).relu()

    def forward(self, image: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(image))


class AudioCNN(nn.Module):
    """Three 3x3 convolutions of stride 2 with ReLU, then two linear layers.

    Args:
        width: channels of the first convolution; doubled by each of the next two, `fc1` has four times as many.
        size: mel bands and frames of the (square) spectrograms.
    """

    def __init__(self, width: int = 12, classes: int = 10, size: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(4 * width * (size // 8) ** 2, 4 * width)
        self.fc2: nn.Module = nn.Linear(4 * width, classes)

    def features(self, audio: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch features"]:
        x = self.conv3(self.conv2(self.conv1(audio).relu()).relu()).relu()
        return self.fc1(x.flatten(1)).relu()

    def forward(self, audio: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(audio))


class Fusion(nn.Module):
    """Image and sound read apart, then joined: `concat` of both features, `fc1` with ReLU, `fc2`.

    Args:
        width: as in ImageCNN and AudioCNN; `concat` has 8 width features, `fc1` 4 width.
        dropout: share of the joined features that is dropped in training.
    """

    def __init__(self, width: int = 12, classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        self.image = ImageCNN(width, classes)
        self.audio = AudioCNN(width, classes)
        self.image.fc2, self.audio.fc2 = nn.Identity(), nn.Identity()
        self.concat = nn.Identity()  # a place to listen at, or to mask
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(8 * width, 4 * width)
        self.fc2 = nn.Linear(4 * width, classes)

    def forward(
        self, image: Float[Tensor, "batch 1 height width"], audio: Float[Tensor, "batch 1 mels frames"]
    ) -> Float[Tensor, "batch classes"]:
        joined = self.concat(torch.cat([self.image(image), self.audio(audio)], dim=1))
        return self.fc2(self.fc1(self.dropout(joined)).relu())
