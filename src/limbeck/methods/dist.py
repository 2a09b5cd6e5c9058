"""DIST: knowledge distillation from a stronger teacher (Huang, You, Wang, Qian and Xu 2022, arXiv 2205.10536)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.losses.correlation import pearson_classes, pearson_samples
from limbeck.method import Card, Transfer
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class DIST(Transfer):
    """task + beta T^2 (1 - mean over samples of rho along the classes) + gamma T^2 (1 - mean over classes of rho along the batch).

    rho is Pearson's correlation of the probabilities softmax(z / T) of both (equations 4 to 10); T is the paper's tau.
    The second relation looks at the batch as a whole. Defaults are those of the released code; from memory, published
    runs use beta = gamma = 2 with T = 1 (ImageNet) or 4 (CIFAR-100).
    """

    card = Card(
        "dist",
        summary="The student keeps the teacher's proportions, among classes and among samples, not its exact probabilities.",
        paper="Huang et al.: Knowledge Distillation from A Stronger Teacher, NeurIPS 2022, arXiv 2205.10536",
        use_when="the teacher is much stronger than the student, and matching it exactly hurts; with batches of many samples",
        cost="one forward pass of the teacher per sample, as kd",
    )

    temperature: Annotated[float, Field(gt=0)] = 1.0
    beta: Scalar = 1.0
    gamma: Scalar = 1.0

    def objective(self) -> Objective:
        return Objective(
            Term(pearson_samples, weight=self.beta, name="samples", temperature=self.temperature),
            Term(pearson_classes, weight=self.gamma, name="classes", scope="batch", temperature=self.temperature),
        )
