"""Logit standardisation in knowledge distillation (Sun, Ren, Li, Wang and Cao 2024, arXiv 2403.01427)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.losses.standardise import standardised_kl
from limbeck.method import Card, Transfer
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class LogitStandardisation(Transfer):
    """task_weight * task + weight * T^2 KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)), means over samples.

    Z(z) = (z - mean z) / std z, per sample over the classes (algorithm 1), so that every sample has a temperature of its
    own, std * T, on each side. The task reads the plain logits. The defaults are the released code's for CIFAR-100.
    """

    card = Card(
        "logit-standardisation",
        summary="KD between z-scores of the logits: their shape is taught, not their magnitude.",
        paper="Sun et al.: Logit Standardization in Knowledge Distillation, CVPR 2024, arXiv 2403.01427",
        use_when="the teacher's logits are much larger than a small student's can become",
        cost="one forward pass of the teacher per sample, as kd",
    )

    temperature: Annotated[float, Field(gt=0)] = 2.0
    weight: Scalar = 9.0
    task_weight: Scalar = 0.1

    def objective(self) -> Objective:
        return Objective(Term(standardised_kl, temperature=self.temperature))
