"""Networks of the benchmarks: one branch per modality, and their fusion. All return logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.models.cross_modal import SeriesCNN


class Vector(nn.Module):
    """Features [inputs] through `fc0` and `fc1` (both `width`, ReLU) to `fc2`."""

    def __init__(self, inputs: int, width: int = 32, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc0, self.fc1 = nn.Linear(inputs, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.fc2: nn.Module = nn.Linear(width, classes)
        self.width = width

    def features(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch width"]:
        return self.dropout(self.fc1(self.fc0(x).relu()).relu())

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(x))


class Series(SeriesCNN):
    """A series [channels, steps]; `fc1` has 4 width features."""

    def __init__(self, channels: int, width: int = 16, classes: int = 4, dropout: float = 0.0) -> None:
        super().__init__(channels, width, classes, dropout)
        self.width = 4 * width

    def forward(self, x: Float[Tensor, "batch channels steps"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(x))


class Scene(nn.Module):
    """An image [3, height, width]: three 3x3 convolutions of stride 2, averaged over height, `fc1`, `fc2`."""

    def __init__(self, width: int = 8, classes: int = 2, columns: int = 13) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.fc1 = nn.Linear(4 * width * columns, 4 * width)
        self.fc2: nn.Module = nn.Linear(4 * width, classes)
        self.width = 4 * width

    def features(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        x = self.conv3(self.conv2(self.conv1(x).relu()).relu()).relu()
        return self.fc1(x.mean(2).flatten(1)).relu()

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        return self.fc2(self.features(x))


BRANCHES: dict[str, Any] = {"vector": Vector, "series": Series, "scene": Scene}


class Join(nn.Module):
    """Branches side by side, their features in `concat`, then `fc1` (ReLU) and `fc2`.

    Args:
        branches: in the order in which the modalities are given: `{use: vector, inputs: 47, width: 32}`.
    """

    def __init__(
        self, branches: list[Mapping[str, Any]], width: int = 32, classes: int = 10, dropout: float = 0.3
    ) -> None:
        super().__init__()
        made = []
        for branch in branches:
            options = dict(branch)
            network = BRANCHES[options.pop("use")](classes=classes, **options)
            network.fc2 = nn.Identity()
            made.append(network)
        self.branches = nn.ModuleList(made)
        self.concat, self.dropout = nn.Identity(), nn.Dropout(dropout)
        self.fc1 = nn.Linear(sum(network.width for network in made), width)
        self.fc2 = nn.Linear(width, classes)

    def forward(self, *views: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch classes"]:
        features = [branch.features(view) for branch, view in zip(self.branches, views)]  # type: ignore[operator]
        return self.fc2(self.fc1(self.dropout(self.concat(torch.cat(features, 1)))).relu())


class Residual(nn.Module):
    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.skip = nn.Identity() if (inside, stride) == (out, 1) else nn.Conv2d(inside, out, 1, stride, bias=False)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.skip(x))


class ResNet(nn.Module):
    """The CIFAR form of ResNet: three stages of `blocks` residual blocks, width, 2 width and 4 width."""

    def __init__(self, blocks: int = 1, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        widths = [width, 2 * width, 4 * width]
        for i, (inside, out) in enumerate(zip([width, *widths], widths)):
            stage = [Residual(inside if j == 0 else out, out, 2 if i and j == 0 else 1) for j in range(blocks)]
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4 * width, classes)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        x = self.stem(image)
        for i in (1, 2, 3):
            x = self.get_submodule(f"layer{i}")(x)
        return self.fc(self.pool(x).flatten(1))


class EncoderDecoder(nn.Module):
    """Three halvings and back, with what each level knew added on the way up; logits at the resolution of the image."""

    def __init__(self, width: int = 8, classes: int = 11) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.down = nn.ModuleList(self.step(a, b, 2) for a, b in zip([3, *widths], widths))
        self.up = nn.ModuleList(self.step(a, b, 1) for a, b in zip(widths[::-1], [*widths[-2::-1], width]))
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def step(inside: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        levels, x = [], image
        for down in self.down:
            x = down(x)
            levels.append(x)
        for up, level in zip(self.up, [*levels[-2::-1], None]):
            size = level.shape[2:] if level is not None else image.shape[2:]
            x = F.interpolate(up(x), size=size, mode="bilinear", align_corners=False)
            x = x + level if level is not None else x
        return self.head(x)
