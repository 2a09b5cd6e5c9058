"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu and Liang 2022, arXiv 2203.08679)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.losses.nontarget import nontarget_kl, target_kl
from limbeck.method import Card
from limbeck.methods.labelled import LabelledTransfer
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar, Warmup


class DKD(LabelledTransfer):
    """task + weight * (alpha TCKD + beta NCKD), means over samples (equation 7).

    TCKD = T^2 KL of [p_y, 1 - p_y], the teacher's to the student's; NCKD = T^2 KL of the softmaxes over the other
    classes. In plain KD the second half is weighed by 1 - p_y, so a sure teacher teaches nothing about the others; here
    by `beta`. The label y is the data's, never the teacher's guess. Published: 20 of 240 epochs of warm-up, CIFAR-100.
    """

    card = Card(
        "dkd",
        summary="KD in two halves of their own weight: the right class, and the order among the others.",
        paper="Zhao et al.: Decoupled Knowledge Distillation, CVPR 2022, arXiv 2203.08679",
        use_when="the teacher is sure of its training data, so that KD has little left to say; lower beta if it is very sure",
        cost="one forward pass of the teacher per sample, as kd",
    )

    temperature: Annotated[float, Field(gt=0)] = 4.0
    alpha: Scalar = 1.0
    beta: Scalar = 8.0
    weight: Scalar = Warmup(share=20 / 240)

    def objective(self) -> Objective:
        return Objective(
            Term(target_kl, weight=self.alpha, name="target", temperature=self.temperature),
            Term(nontarget_kl, weight=self.beta, name="nontarget", temperature=self.temperature),
        )
