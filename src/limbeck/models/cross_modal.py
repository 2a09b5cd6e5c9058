"""Small networks for `av-mnist` and `utd-mhad`; all return logits [batch, classes].

Every convolution and linear layer is a place to listen at or to mask, by its name; `concat` is the joined features.
With their defaults the three for AV-MNIST have the layers of the published benchmark (MST-Distill, arXiv 2507.07015).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import RecipeError, nearest


class LeNet5(nn.Module):
    """LeNet-5 for images of 28x28: 5x5 convolutions of 6, 16 and 120 channels, average pooling, 84 features; ReLU."""

    features_out = 84

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.conv3 = nn.Conv2d(16, 120, 5)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(120, self.features_out)
        self.fc2: nn.Module = nn.Linear(self.features_out, classes)

    def forward(self, image: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch classes"]:
        x = F.avg_pool2d(self.conv1(image).relu(), 2)
        x = F.avg_pool2d(self.conv2(x).relu(), 2)
        x = self.flatten(self.conv3(x).relu())
        return self.fc2(self.fc1(x).relu())


class SpectrogramCNN(nn.Module):
    """Three 3x3 convolutions (width, 2 width, 4 width), each with ReLU and 2x2 max-pooling, then one linear layer.

    Args:
        width: 32 as published; 8 for a CPU.
        size: bands and frames of the (square) spectrograms; 112 as published.
    """

    def __init__(self, width: int = 32, classes: int = 10, size: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(4 * width * (size // 8) ** 2, classes)

    def forward(self, audio: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch classes"]:
        x = F.max_pool2d(self.conv1(audio).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2)
        x = F.max_pool2d(self.conv3(x).relu(), 2)
        return self.fc1(self.flatten(x))


class SpectrogramFeatures(nn.Module):
    """Five 3x3 convolutions, each twice as wide as the one before, ReLU, 2x2 max-pooling between; averaged over the map."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.conv4 = nn.Conv2d(4 * width, 8 * width, 3, padding=1)
        self.conv5 = nn.Conv2d(8 * width, 16 * width, 3, padding=1)

    def forward(self, audio: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch features"]:
        x = audio
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.max_pool2d(conv(x).relu(), 2)
        return self.conv5(x).relu().mean(dim=(2, 3))


class AudioVisualFusion(nn.Module):
    """LeNet-5's 84 features and 16 width of the sound joined (`concat`), then `fc1` (half as many) and `fc2`.

    Between `fc1` and `fc2` there is no non-linearity, as published.

    Args:
        width: channels of the sound's first convolution; 32 as published (596 joined features), 8 for a CPU (212).
    """

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.image = LeNet5(classes)
        self.image.fc2 = nn.Identity()
        self.audio = SpectrogramFeatures(width)
        joined = LeNet5.features_out + 16 * width
        self.concat = nn.Identity()
        self.fc1 = nn.Linear(joined, joined // 2)
        self.fc2 = nn.Linear(joined // 2, classes)

    def forward(
        self, image: Float[Tensor, "batch 1 28 28"], audio: Float[Tensor, "batch 1 mels frames"]
    ) -> Float[Tensor, "batch classes"]:
        joined = self.concat(torch.cat([self.image(image), self.audio(audio)], dim=1))
        return self.fc2(self.fc1(joined))


class DepthCNN(nn.Module):
    """A depth video with its frames as channels: three 3x3 convolutions of stride 2, then `fc1` and `fc2`; ReLU.

    Args:
        width: channels of the first convolution; doubled by each of the next two; `fc1` has 4 width.
    """

    def __init__(
        self, width: int = 16, classes: int = 27, frames: int = 16, size: int = 40, dropout: float = 0.3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(frames, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(4 * width * (-(-size // 8)) ** 2, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.fc2: nn.Module = nn.Linear(4 * width, classes)

    def forward(self, depth: Float[Tensor, "batch frames height width"]) -> Float[Tensor, "batch classes"]:
        x = self.conv3(self.conv2(self.conv1(depth).relu()).relu()).relu()
        return self.fc2(self.dropout(self.fc1(x.flatten(1)).relu()))


class SeriesCNN(nn.Module):
    """A time series: three convolutions over 5 steps of stride 2, an average over four parts of time, `fc1`, `fc2`; ReLU.

    Args:
        channels: values per step. width: channels of the first convolution; doubled by each of the next two.
    """

    def __init__(self, channels: int, width: int = 16, classes: int = 27, dropout: float = 0.3) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, width, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(width, 2 * width, 5, stride=2, padding=2)
        self.conv3 = nn.Conv1d(2 * width, 4 * width, 5, stride=2, padding=2)
        self.fc1 = nn.Linear(16 * width, 4 * width)
        self.dropout = nn.Dropout(dropout)
        self.fc2: nn.Module = nn.Linear(4 * width, classes)

    def features(self, series: Float[Tensor, "batch channels steps"]) -> Float[Tensor, "batch features"]:
        x = self.conv3(self.conv2(self.conv1(series).relu()).relu()).relu()
        return self.dropout(self.fc1(F.adaptive_avg_pool1d(x, 4).flatten(1)).relu())


class SkeletonCNN(SeriesCNN):
    """The series of 20 joints x (x, y, z): [batch, 60, frames]."""

    def __init__(self, width: int = 16, classes: int = 27, dropout: float = 0.3) -> None:
        super().__init__(60, width, classes, dropout)

    def forward(self, skeleton: Float[Tensor, "batch 60 frames"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(skeleton))


class InertialCNN(SeriesCNN):
    """The series of acceleration and rotation: [batch, 6, steps]."""

    def __init__(self, width: int = 16, classes: int = 27, dropout: float = 0.3) -> None:
        super().__init__(6, width, classes, dropout)

    def forward(self, inertial: Float[Tensor, "batch 6 steps"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(inertial))


BRANCHES: dict[str, type[nn.Module]] = {"depth": DepthCNN, "skeleton": SkeletonCNN, "inertial": InertialCNN}


class ActionFusion(nn.Module):
    """Two or three modalities of `utd-mhad`, each read by its own network (`depth`, `skeleton`, `inertial`), then joined.

    Args:
        modalities: which ones; the network takes them by position, in this order.
        width: of each branch; `concat` has 4 width features per modality, `fc1` 4 width.

    Raises:
        RecipeError: an unknown modality, or fewer than two.
    """

    def __init__(
        self, modalities: Sequence[str] = ("depth", "skeleton", "inertial"), width: int = 16, classes: int = 27
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        for name in self.modalities:
            if name not in BRANCHES:
                raise RecipeError(f"ActionFusion knows no modality '{name}'. {nearest(name, BRANCHES)}")
            branch = BRANCHES[name](width=width, classes=classes)
            branch.fc2 = nn.Identity()
            self.add_module(name, branch)
        if len(set(self.modalities)) != len(self.modalities) or len(self.modalities) < 2:
            raise RecipeError(f"ActionFusion joins two or three different modalities; given: {list(self.modalities)}.")
        self.concat = nn.Identity()
        self.fc1 = nn.Linear(4 * width * len(self.modalities), 4 * width)
        self.fc2 = nn.Linear(4 * width, classes)

    def forward(self, *views: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        if len(views) != len(self.modalities):
            raise ValueError(
                f"This fusion takes {', '.join(self.modalities)} in this order; it got {len(views)} inputs."
            )
        features = [self.get_submodule(name)(view) for name, view in zip(self.modalities, views)]
        return self.fc2(self.fc1(self.concat(torch.cat(features, dim=1))).relu())
