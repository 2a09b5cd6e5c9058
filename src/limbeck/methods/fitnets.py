"""FitNets: hints from the middle of the teacher (Romero et al. 2015, arXiv 1412.6550)."""

from __future__ import annotations

from limbeck.layers import LayerTransfer
from limbeck.losses import mse
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class FitNets(LayerTransfer):
    """task_weight * task + weight * sum over layers of mean((r(f_s) - f_t)^2), the mean over all entries and samples.

    r is a bridge that learns with the student and stays behind at export; equal shapes are compared as they are.
    Without `layers` one pair is taken, in the middle, as in the paper. Weight 100 belongs to this mean (the code of
    the CIFAR benchmarks); the paper's equation 3 is half the sum of squares. The paper trains the hint alone first and
    distils logits afterwards: `stages` with `{use: fitnets, task_weight: 0}` and then `kd`.

    `mask` names a batch column (bool) of the teacher's positions that count.
    """

    card = Card(
        "fitnets",
        summary="The student's middle layer predicts the teacher's.",
        paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio: FitNets, Hints for Thin Deep Nets, ICLR 2015, arXiv 1412.6550 (eq. 3)",
        needs=("stages",),
        use_when="the student is deep and thin, or its logits alone teach too little; teacher and student compute alike",
        cost="one forward pass of the teacher, up to the last layer compared; a linear map per pair of layers",
    )

    weight: Scalar = 100.0

    def _proposed(self) -> list[tuple[str, str]]:
        pairs = super()._proposed()
        return [pairs[(len(pairs) - 1) // 2]]

    def objective(self) -> Objective:
        return Objective(*(Term(mse, pair, mask=self.mask, name=f"hint{i}") for i, pair in enumerate(self.pairs)))
