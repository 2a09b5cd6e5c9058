"""Attention-based fusion: each level of a student is reviewed together with all deeper ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.bridges.base import Bridge

MapShape = tuple[int, int, int]
Map = Float[Tensor, "batch channels height width"]


class Fusion(nn.Module):
    """One level: x = BN(1x1(own)), joined with what comes from the deeper level, gives BN(3x3(x)) and x itself.

    x <- a x + b y with y the deeper level's x at this level's size, and two gates per pixel
    a, b = sigmoid(1x1([x, y])), independent of each other (no softmax). The 1x1 convolution of the gates is linear, so y
    passes it at its own, smaller size. A map of one pixel sees only the middle of a 3x3 kernel, so it gets a 1x1 one.

    Source: Chen et al. 2021, "Distilling knowledge via knowledge review", section 3.3 (ABF).
    """

    def __init__(self, channels: int, width: int, to: MapShape, *, deepest: bool):
        super().__init__()
        kernel = 3 if max(to[1:]) > 1 else 1
        self.size = to[1:]
        own = nn.Conv2d(channels, width, 1, bias=False)
        out = nn.Conv2d(width, to[0], kernel, padding=kernel // 2, bias=False)
        for convolution in (own, out):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.inner = nn.Sequential(own, nn.BatchNorm2d(width))
        self.outer = nn.Sequential(out, nn.BatchNorm2d(to[0]))
        self.gate_of_own = None if deepest else nn.Conv2d(width, 2, 1)
        self.gate_of_deeper = None if deepest else nn.Conv2d(width, 2, 1, bias=False)

    def forward(self, own: Map, deeper: Map | None = None) -> tuple[Map, Map]:
        x = self.inner(own)
        if deeper is not None and self.gate_of_own is not None and self.gate_of_deeper is not None:
            size = x.shape[2:]
            gates = torch.sigmoid(self.gate_of_own(x) + _resized(self.gate_of_deeper(deeper), size))
            x = torch.addcmul(x * gates[:, :1], _resized(deeper, size), gates[:, 1:])
        x = _resized(x, self.size)
        return self.outer(x), x


class Review(Bridge):
    """All levels, from the deepest up: a student's maps in the shapes of a teacher's, each with the deeper ones in it.

    Args:
        student, teacher: shapes of the maps, from the shallowest level to the deepest, without the batch.
        width: the most channels that levels are joined at; never more than the deepest level of the student has.
    """

    def __init__(self, student: Sequence[MapShape], teacher: Sequence[MapShape], *, width: int = 512):
        super().__init__()
        width, last = min(width, student[-1][0]), len(student) - 1
        self.levels = nn.ModuleList(
            Fusion(own[0], width, to, deepest=level == last)
            for level, (own, to) in enumerate(zip(student, teacher, strict=True))
        )

    def forward(self, maps: Sequence[Map]) -> list[Map]:
        found: list[Map] = []
        deeper: Map | None = None
        for level, own in zip(reversed(self.levels), reversed(maps), strict=True):
            out, deeper = level(own, deeper)
            found.insert(0, out)
        return found

    def words(self) -> str:
        return f"a review of {len(self.levels)} levels"


def _resized(x: Map, size: Sequence[int]) -> Map:
    return x if tuple(x.shape[2:]) == tuple(size) else F.interpolate(x, tuple(size), mode="nearest")
