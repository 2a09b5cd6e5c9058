"""VID: variational information distillation (Ahn et al. 2019, arXiv 1904.05835)."""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.bridges import Bridge, Conv1x1, Linear
from limbeck.bridges.partial import shapes_of, to_positions, width_of
from limbeck.layers import LayerTransfer
from limbeck.losses.variational import variational_information
from limbeck.method import Card
from limbeck.objectives import Objective, Term

LEAST = 1e-5  # the variance above which softplus starts: keeps the logarithm finite


class Regressor(Bridge):
    """Predicts the teacher's feature: to its positions, then three affine maps of the channels with ReLU in between."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]):
        super().__init__()
        affine = Linear if len(teacher) < 3 else Conv1x1
        width = width_of(teacher)
        self.there = to_positions(student, teacher)
        self.map = nn.Sequential(
            affine(width_of(student), width), nn.ReLU(), affine(width, width), nn.ReLU(), affine(width, width)
        )

    def forward(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        return self.map(self.there(x))


class VID(LayerTransfer):
    """task_weight * task + weight * sum over layers of mean((mu(f_s) - f_t)^2 / v_c + log v_c) / 2, per channel c.

    The mean is over samples, channels and positions. mu is a regressor of three affine maps, v_c = softplus(a_c) +
    1e-5 the variance of the teacher's channel c given the student: both learn with the student (equation 6) and stay
    behind at export. A channel that the student cannot predict gets a large variance and little weight. May be negative.

    `variance` is what v starts from. `mask` names a batch column (bool) of the teacher's positions that count.
    """

    card = Card(
        "vid",
        summary="The student's layers tell as much as they can about the teacher's, channel by channel.",
        paper="Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation, CVPR 2019, arXiv 1904.05835 (eq. 3 to 6)",
        needs=("stages",),
        use_when="the teacher has channels that the student cannot or need not reproduce; few labels",
        cost="one forward pass of the teacher; a three-layer regressor per pair of layers while training",
    )

    variance: Annotated[float, Field(gt=LEAST)] = 5.0

    def setup(self) -> None:
        start = self.variance - LEAST
        raw = start + math.log(-math.expm1(-start))  # softplus(raw) = start
        widths = [width_of(shapes_of(self.student, self.teacher, pair, "vid")[1]) for pair in self.pairs]
        self.scales = nn.ParameterList([nn.Parameter(torch.full((width,), raw)) for width in widths])
        super().setup()

    def variances(self, which: int) -> Float[Tensor, "channels"]:
        """v of one pair of layers, above 0."""
        return F.softplus(self.scales[which]) + LEAST

    def objective(self) -> Objective:
        terms = []
        for i, pair in enumerate(self.pairs):
            ours, theirs = shapes_of(self.student, self.teacher, pair, "vid")
            bridge = Regressor(ours, theirs)
            terms.append(
                Term(partial(self._likelihood, i), pair, bridge=bridge, mask=self.mask, name=f"information{i}")
            )
        return Objective(*terms)

    def _likelihood(
        self,
        which: int,
        student: Float[Tensor, "batch ..."],
        teacher: Float[Tensor, "batch ..."],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch"]:
        return variational_information(student, teacher, variance=self.variances(which), mask=mask)
