"""Similarity-preserving knowledge distillation (Tung and Mori 2019, arXiv 1907.09682)."""

from __future__ import annotations

from typing import ClassVar, Literal

from limbeck.layers import LayerTransfer
from limbeck.losses.relations import similarity_preserving
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class SP(LayerTransfer):
    """task_weight * task + weight * ||G_s - G_t||_F^2 / batch^2, G the row-normalised similarities (equation 4)."""

    card = Card(
        "sp",
        summary="Samples that are alike for the teacher become alike for the student.",
        paper="Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019, arXiv 1907.09682",
        needs=("map",),
        use_when="networks of other widths or sizes, without bridges; larger batches say more",
        cost="one forward pass of the teacher; batch^2 similarities",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "map"

    weight: Scalar = 3000.0

    def objective(self) -> Objective:
        terms = (Term(similarity_preserving, pair, scope="batch", bridge="none", name="sp") for pair in self.pairs)
        return Objective(*terms)
