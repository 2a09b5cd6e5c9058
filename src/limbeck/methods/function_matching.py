"""Function matching by a patient, consistent teacher (Beyer, Zhai, Royer, Markeeva, Anil and Kolesnikov 2022, arXiv 2106.05237)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

import torch
from jaxtyping import Shaped
from pydantic import Field
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.method import Batch, Card, Outcome, Progress, Transfer, Update
from limbeck.methods import shown
from limbeck.methods.shown import Transforms
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar
from limbeck.transforms import RandomTransform


class FunctionMatching(Transfer):
    """T^2 KL(softmax(teacher(x) / T) || softmax(student(x) / T)) of the same x for both, at T = 1, without labels.

    x is drawn anew for every step: the transforms of `augment` (crop, flip), the same for both, then mixup,
    x_i <- a x_i + (1 - a) x_(i+1) around the batch, a = max(b, 1 - b), b ~ Beta(mixup, mixup), one a per step (and
    process). The teacher answers for the mixed x itself; its answers are not mixed. `mixup=0` leaves it out. A teacher
    and a student may be shown different columns of a row; these get the same a.

    The published schedules are very long: 1200 epochs in the released configuration (batch 4096, lr 0.03, weight decay
    3e-4, 5000 steps of warm-up, gradients clipped at 1).
    """

    card = Card(
        "function-matching",
        summary="The teacher is asked again at every step, about exactly what the student sees, mixtures included.",
        paper="Beyer et al.: Knowledge Distillation: A Good Teacher is Patient and Consistent, CVPR 2022, arXiv 2106.05237",
        use_when="there is time for very many epochs: it overtakes kd late, and does not overfit; no labels needed",
        cost="one forward pass of the teacher per sample and step, never from a store; long schedules",
    )

    temperature: Annotated[float, Field(gt=0)] = 1.0
    mixup: Annotated[float, Field(ge=0)] = 1.0
    augment: Transforms = ()
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(Term(kl, temperature=self.temperature))

    def setup(self) -> None:
        super().setup()
        shown.check(self.augment, self, "augment")
        if self.augment or self.mixup > 0:
            shown.refuse_stored(self)
        drawn = [[t.spec() for t in view.transforms if isinstance(t, RandomTransform)] for view in shown.views(self)]
        if any(others != drawn[0] for others in drawn):
            raise RecipeError(
                "function-matching shows teacher and student the same, and the random transforms of their views differ. "
                "Give both views the same ones, or move them to method.augment."
            )
        if self.mixup == 0:
            return
        if self.task_weight.spec() != 0:
            raise RecipeError(
                "function-matching with task_weight: a mixture has no label. Set method.mixup=0, or leave task_weight at 0."
            )
        row = self.data["train"].__getitems__([0])
        whole = [key for key in shown.columns(self) if not torch.is_floating_point(torch.as_tensor(row[key]))]
        if whole:
            raise RecipeError(
                f"function-matching mixes what the networks see, and the column '{whole[0]}' does not hold floating-point "
                "numbers. Set method.mixup=0, or show them others."
            )

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = shown.changed(batch, self, self.augment, batch.get("view_seed"))
        if self.mixup > 0:
            drawn = float(torch.distributions.Beta(self.mixup, self.mixup).sample())
            share = max(drawn, 1 - drawn)
            batch |= {key: mixed(batch[key], share) for key in shown.columns(self)}
        yield Update("student", self.loss, batch)


def mixed(x: Shaped[Tensor, "batch ..."], share: float) -> Shaped[Tensor, "batch ..."]:
    """share * x_i + (1 - share) * x_(i+1), the last with the first (Zhang et al. 2018, mixup); in the dtype of `x`."""
    return share * x + (1 - share) * x.roll(-1, 0)
