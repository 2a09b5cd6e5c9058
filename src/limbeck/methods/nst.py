"""NST: neuron selectivity transfer (Huang and Wang 2017, arXiv 1707.01219)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.bridges.partial import shapes_of, to_one_kind
from limbeck.layers import LayerTransfer
from limbeck.losses.gram import nst
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class NST(LayerTransfer):
    """task_weight * task + weight * sum over layers of MMD^2 between the channels of student and teacher.

    A channel is where on the map (or at which tokens) a neuron is active, scaled to unit length; the two sets of
    channels should be alike as distributions, whatever their number and order, so nothing is learned between the
    networks. The larger of two maps is pooled to the smaller.

    `mask` names a batch column (bool) of the positions that count.
    """

    card = Card(
        "nst",
        summary="The student's neurons are selective for the same places as the teacher's.",
        paper="Huang, Wang: Like What You Like, Knowledge Distill via Neuron Selectivity Transfer, 2017, arXiv 1707.01219 (eq. 5 to 8)",
        needs=("map",),
        use_when="maps of different width, also tokens; together with kd",
        cost="one forward pass of the teacher; inner products of all pairs of channels of a sample",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "map"

    weight: Scalar = 50.0
    kernel: Literal["linear", "polynomial", "gaussian"] = "polynomial"
    degree: Annotated[int, Field(ge=1)] = 2
    offset: Annotated[float, Field(ge=0)] = 0.0
    bandwidth: Annotated[float, Field(gt=0)] | None = None

    def objective(self) -> Objective:
        what, terms = "neuron selectivity transfer", []
        for i, pair in enumerate(self.pairs):
            bridge = to_one_kind(*shapes_of(self.student, self.teacher, pair, what), what)
            terms.append(
                Term(
                    nst,
                    pair,
                    bridge=bridge,
                    mask=self.mask,
                    name=f"selectivity{i}",
                    kernel=self.kernel,
                    degree=self.degree,
                    offset=self.offset,
                    bandwidth=self.bandwidth,
                )
            )
        return Objective(*terms)
