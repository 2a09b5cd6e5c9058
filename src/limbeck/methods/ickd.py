"""ICKD: inter-channel correlation (Liu et al. 2021, arXiv 2202.03680)."""

from __future__ import annotations

from typing import ClassVar, Literal

from limbeck.bridges import Identity, describe
from limbeck.bridges.partial import shapes_of, to_width
from limbeck.layers import LayerTransfer
from limbeck.losses.gram import ickd
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class ICKD(LayerTransfer):
    """task_weight * task + weight * sum over layers of (1/C) sum_cd (G_s - G_t)_cd^2, G the correlations of channels.

    G_cd = f_c . f_d over positions, each row of unit length (`normalise`, the released code): which channels are awake
    together. Positions are summed out, so they may differ in number; another number of channels goes through a 1x1
    convolution (tokens and vectors: a linear map) that learns with the student and stays behind at export.

    `mask` names a batch column (bool) of the positions that count, the same ones on both sides.
    """

    card = Card(
        "ickd",
        summary="The student's channels are awake together as the teacher's are.",
        paper="Liu, Huang, Lin, et al.: Exploring Inter-Channel Correlation for Diversity-Preserved Knowledge Distillation, ICCV 2021, "
        "arXiv 2202.03680. The formula is the paper's with the row scaling of the released code; the weight 2.5 was not verified",
        needs=("map",),
        use_when="maps of different sizes, where no position needs to match; together with kd",
        cost="one forward pass of the teacher; inner products of all pairs of channels; a 1x1 convolution while training",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "map"

    weight: Scalar = 2.5
    normalise: bool = True

    def objective(self) -> Objective:
        terms = []
        for i, pair in enumerate(self.pairs):
            ours, theirs = shapes_of(self.student, self.teacher, pair, "ickd")
            bridge = to_width(ours, theirs)
            if not isinstance(bridge, Identity):
                self.notices.append(f"correlation{i}: {describe(bridge, ours, theirs)}")
            terms.append(
                Term(ickd, pair, bridge=bridge, mask=self.mask, name=f"correlation{i}", normalise=self.normalise)
            )
        return Objective(*terms)
