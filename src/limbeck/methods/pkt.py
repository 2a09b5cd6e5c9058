"""Probabilistic knowledge transfer (Passalis and Tefas 2018, arXiv 1803.10837)."""

from __future__ import annotations

from typing import ClassVar, Literal

from limbeck.layers import LayerTransfer
from limbeck.losses.relations import pkt
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class PKT(LayerTransfer):
    """task_weight * task + weight * mean_ij p^t_ij log(p^t_ij / p^s_ij), p_ij the share of j in i's neighbourhood.

    The kernel is (1 + cosine) / 2. The mean over batch^2 entries is small: hence the usual weight of 30000 (the paper
    trains on the divergence alone; the weight is that of published comparisons).
    """

    card = Card(
        "pkt",
        summary="Each sample has the neighbours, in probability, that it has for the teacher.",
        paper="Passalis, Tefas: Learning Deep Representations with Probabilistic Knowledge Transfer, ECCV 2018, arXiv 1803.10837",
        needs=("embedding",),
        use_when="embeddings for retrieval, networks of other widths, or teachers of another modality",
        cost="one forward pass of the teacher; batch^2 similarities",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "embedding"

    weight: Scalar = 30000.0

    def objective(self) -> Objective:
        return Objective(*(Term(pkt, pair, scope="batch", bridge="none", name="pkt") for pair in self.pairs))
