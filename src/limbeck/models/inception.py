"""Inception v3 as the Frechet Inception distance knows it: the network whose published weights (pt_inception-2015-12-05) are read here.

It is the TensorFlow network of 2015 with 1008 classes: averages leave out the padding, and the last block takes maxima. Others of this
name (torchvision's, 1000 classes) give other features, and distances in them are compared with nothing in the literature.
Architecture: Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision", section 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import RecipeError

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SIDE, FEATURES, CLASSES = 299, 2048, 1008
Kernel = int | tuple[int, int]
Maps = Float[Tensor, "batch channels high wide"]


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU; padded to the same size, unless `stride` is 2 or `pad` is False."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Maps) -> Maps:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Ways side by side, their channels one after the other.

    Args:
        ways: each a list of (name, channels, kernel, stride). Names that end in `a` and `b` are both fed with what comes before them. A
            way that begins with "mean" or "max" pools first (3 x 3; with stride 2 it is nothing but the pooling).
    """

    def __init__(self, channels: int, *ways: list[Any]) -> None:
        super().__init__()
        self.ways: list[list[Any]] = []
        for way in ways:
            width, names = channels, [step for step in way if isinstance(step, str)]
            forks = [step for step in way if not isinstance(step, str)]
            for name, out, kernel, *stride in forks:
                self.add_module(name, Convolution(width, out, kernel, *stride))
                names.append(name)
                width = width if name.endswith("a") else out
            self.ways.append(names)

    def forward(self, x: Maps) -> Maps:
        return torch.cat([part for way in self.ways for part in self._go(way, x)], 1)

    def _go(self, way: list[str], x: Maps) -> Iterator[Maps]:
        for name in way:
            if name == "mean":
                x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            elif name == "max":
                x = F.max_pool2d(x, 3, 1, 1)
            elif name == "shrink":
                x = F.max_pool2d(x, 3, 2)
            elif name.endswith("a"):
                yield self.get_submodule(name)(x)
            else:
                x = self.get_submodule(name)(x)
        yield x


def _a(channels: int, pooled: int) -> Mixed:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    wide = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    return Mixed(channels, [("branch1x1", 64, 1)], wide, double, ["mean", ("branch_pool", pooled, 1)])


def _b(channels: int) -> Mixed:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)]
    return Mixed(channels, [("branch3x3", 384, 3, 2)], double, ["shrink"])


def _c(channels: int, c: int) -> Mixed:
    once = [("branch7x7_1", c, 1), ("branch7x7_2", c, (1, 7)), ("branch7x7_3", 192, (7, 1))]
    name = "branch7x7dbl_"
    twice: list[Any] = [(f"{name}1", c, 1), (f"{name}2", c, (7, 1)), (f"{name}3", c, (1, 7))]
    twice += [(f"{name}4", c, (7, 1)), (f"{name}5", 192, (1, 7))]
    return Mixed(channels, [("branch1x1", 192, 1)], once, twice, ["mean", ("branch_pool", 192, 1)])


def _d(channels: int) -> Mixed:
    name = "branch7x7x3_"
    long = [(f"{name}1", 192, 1), (f"{name}2", 192, (1, 7)), (f"{name}3", 192, (7, 1)), (f"{name}4", 192, 3, 2)]
    return Mixed(channels, [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)], long, ["shrink"])


def _e(channels: int, pool: str) -> Mixed:
    fork = [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]
    double: list[Any] = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3)]
    double += [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]
    return Mixed(channels, [("branch1x1", 320, 1)], fork, double, [pool, ("branch_pool", 192, 1)])


class Inception(nn.Module):
    """Pictures [batch, 3, h, w] in [0, 1] of any size to `embedding` [batch, 2048] and `logits` [batch, 1008].

    Pictures are brought to 299 x 299 (bilinear, as pytorch-fid does it) and to [-1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_c(768, c) for c in (128, 160, 160, 192))
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "mean"), _e(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Maps) -> dict[str, Tensor]:
        x = 2 * F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        for name, part in self.named_children():
            if name == "fc":
                break
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = F.max_pool2d(x, 3, 2)
            x = part(x)
        embedding = x.mean((2, 3))
        return {"embedding": embedding, "logits": self.fc(embedding)}


def load(place: str | Path | None = None) -> Inception:
    """The network with the published weights: of a file, or (None) from where they are published, kept by torch.hub.

    Raises:
        RecipeError: they cannot be had, or the file holds something else.
    """
    from limbeck.sources import read_weights

    if place is not None:
        state = read_weights(place, "fid.classifier")
    else:
        try:
            state = torch.hub.load_state_dict_from_url(
                URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:  # no network; a file that was cut short
            raise RecipeError(
                f"the check fid compares pictures in the features of Inception v3, whose weights are neither in {torch.hub.get_dir()}/checkpoints nor to be "
                f"had from {URL} ({_first(error)}). Fetch that file where there is a network, and say where it lies: evaluate.fid.classifier=FILE.pth; or name "
                "another classifier, whose distance is then called after it"
            ) from error
    with torch.device("meta"):
        made = Inception()
    own = made.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    others = [name for name in own if name in state and state[name].shape != own[name].shape]
    if missing or others:
        what = (
            f"lacks {missing[0]}"
            if missing
            else f"has {others[0]} of shape {list(state[others[0]].shape)}, not {list(own[others[0]].shape)}"
        )
        raise RecipeError(
            f"{place} is not the Inception v3 of the FID (pt_inception-2015-12-05, 1008 classes): it {what}. Published: {URL}. Other networks are named as "
            "folders or module:attribute, and their distance is called after them"
        )
    counted = {n: torch.zeros((), dtype=torch.int64) for n in own if n.endswith("num_batches_tracked")}
    made.load_state_dict(
        {n: state[n].float() for n in own if n in state} | {n: v for n, v in counted.items() if n not in state},
        assign=True,
    )
    return made.eval().requires_grad_(False)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
