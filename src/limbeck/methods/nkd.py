"""Normalised knowledge distillation (Yang, Zeng, Li, Zhang, Yuan and Li 2023, arXiv 2303.13005)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.losses.nontarget import nontarget_cross_entropy, target_cross_entropy
from limbeck.method import Card
from limbeck.methods.labelled import LabelledTransfer
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class NKD(LabelledTransfer):
    """task + weight * (-p_y log q_y - gamma T^2 sum over c != y of p'_c log q'_c), means over samples.

    p and q are the teacher's and the student's softmax at T = 1, p' and q' those at T over all classes but the label's,
    so that both have mass 1. Both parts are cross-entropies, not divergences: their values do not reach 0, their
    gradients do. The defaults are the released loss file's; CIFAR-100 used T = 3, gamma = 3.5, DeiT T = 1, gamma = 1.
    """

    card = Card(
        "nkd",
        summary="KD's cross-entropy in two parts: the right class, and the others normalised to equal mass.",
        paper="Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation, ICCV 2023, arXiv 2303.13005",
        use_when="as dkd; with fewer weights to choose",
        cost="one forward pass of the teacher per sample, as kd",
    )

    temperature: Annotated[float, Field(gt=0)] = 1.0
    gamma: Scalar = 1.5

    def objective(self) -> Objective:
        return Objective(
            Term(target_cross_entropy, name="target"),
            Term(nontarget_cross_entropy, weight=self.gamma, name="nontarget", temperature=self.temperature),
        )
