"""Knowledge distillation by softened logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.losses import kl
from limbeck.method import Card, Transfer
from limbeck.objectives import Objective, Term


class KD(Transfer):
    """task_weight * task + weight * T^2 KL(softmax(teacher / T) || softmax(student / T)), means over samples (eq. 2 to 4).

    No gradient reaches the teacher (it is frozen). The paper's T^2 keeps the size of the gradient independent of T.
    """

    card = Card(
        "kd",
        summary="The student matches the teacher's softened class probabilities.",
        paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531",
        use_when="always first: teacher and student share a label space",
        cost="one forward pass of the teacher per sample",
    )

    temperature: Annotated[float, Field(gt=0)] = 4.0

    def objective(self) -> Objective:
        return Objective(Term(kl, temperature=self.temperature))
