"""Relational knowledge distillation (Park, Kim, Lu and Cho 2019, arXiv 1904.05068)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from limbeck.layers import LayerTransfer
from limbeck.losses.relations import rkd_angle, rkd_distance
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar, Schedule


class RKD(LayerTransfer):
    """task_weight * task + weight * (25 L_distance + 50 L_angle) on embeddings (equations 6 and 9).

    What is compared are the distances between all pairs and the angles of all triples of a batch, so embeddings of
    different widths need no bridge. `block` samples at most make triples with each other (cost: its third power).
    """

    card = Card(
        "rkd",
        summary="The samples of a batch lie to each other as they do for the teacher: same distances, same angles.",
        paper="Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, arXiv 1904.05068",
        needs=("embedding",),
        use_when="embeddings and retrieval, or networks of other widths or label sets; add it to kd",
        cost="one forward pass of the teacher; batch^2 distances and block^3 angles",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "embedding"

    distance_weight: Scalar = 25.0
    angle_weight: Scalar = 50.0
    block: Annotated[int, Field(ge=3)] = 128

    def objective(self) -> Objective:
        terms = []
        for pair in self.pairs:
            terms += [
                self._term(rkd_distance, pair, "rkd-distance", self.distance_weight),
                self._term(rkd_angle, pair, "rkd-angle", self.angle_weight, block=self.block),
            ]
        return Objective(*terms)

    @staticmethod
    def _term(loss: Callable[..., Tensor], pair: tuple[str, str], name: str, weight: Schedule, **options: Any) -> Term:
        return Term(loss, pair, scope="batch", bridge="none", name=name, weight=weight, **options)
