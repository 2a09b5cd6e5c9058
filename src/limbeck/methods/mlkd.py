"""Multi-level logit distillation (Jin, Wang and Lin 2023), in the form of the code released with arXiv 2403.01427."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from limbeck.errors import RecipeError
from limbeck.losses.levels import kl_at, relation_of_classes, relation_of_samples, unsure_kl
from limbeck.method import Batch, Card, Transfer
from limbeck.methods import shown
from limbeck.methods.shown import Transforms
from limbeck.objectives import Loss, Objective, Term
from limbeck.randomness import fold
from limbeck.schedules import Scalar
from limbeck.signals import Signals
from limbeck.transforms import RandomTransform

_SECOND = 0x7365636F6E64  # "second": apart from the first view's draws


class MLKD(Transfer):
    """task + kd_weight * (instance + strong + classes + samples), each a sum over the temperatures T.

    - instance: T^2 KL on the first view, of the samples that the teacher is less sure of (at most the batch's median);
    - strong: T^2 KL on the second view, of all samples;
    - classes, samples: squared differences of the Gram matrices of the probabilities, between classes (over the less
      probable half of them) and between samples (over the less sure half), on the first view.

    The second view applies `strong` (transforms, `limbeck.transforms`) to the columns that the networks see, and draws
    the views' own random transforms again; both networks see the same. Where nothing is drawn, it is the first view. On
    it the task counts too, times `strong_task_weight`. `standardise`: the KLs are between z-scores (then published:
    T = 2 first, kd_weight 9). `parity="released"`: masks only scale, and of the strong KLs those from the fourth
    temperature on are taken on the first view, as in the released code.
    """

    card = Card(
        "mlkd",
        summary="KD at several temperatures and on two views, with relations between classes and between samples.",
        paper="Jin, Wang, Lin: Multi-Level Logit Distillation, CVPR 2023; code of arXiv 2403.01427",
        use_when="images with a strong augmentation at hand, and twice the time of kd",
        cost="two forward passes of teacher and student per sample, where there is a second view",
    )

    temperatures: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (4.0, 3.0, 5.0, 2.0, 6.0)
    kd_weight: Scalar = 0.9
    task_weight: Scalar = 0.1
    strong_task_weight: Scalar = 0.1
    strong: Transforms = ()
    standardise: bool = False
    parity: Literal["intended", "released"] = "intended"

    def objective(self) -> Objective:
        """The terms of the first view."""
        select, released = self.parity == "intended", self.parity == "released"
        at: dict[str, Any] = {"temperatures": self.temperatures, "select": select, "scope": "batch"}
        misplaced = self.temperatures[3:] if released else ()
        again = Term(kl_at, name="strong.first_view", temperatures=misplaced, standardise=self.standardise)
        return Objective(
            Term(unsure_kl, name="instance", standardise=self.standardise, **at),
            Term(relation_of_classes, name="classes", **at),
            Term(relation_of_samples, name="samples", **at),
            *([again] if misplaced else []),
        )

    def setup(self) -> None:
        super().setup()
        if len(shape := self.student.shapes["logits"]) != 1:
            raise RecipeError(
                f"mlkd relates samples to each other and needs one vector of logits for each; the student gives "
                f"{list(shape)} per sample. dist takes pixels and tokens."
            )
        shown.check(self.strong, self, "strong")
        if self.strong:
            shown.refuse_stored(self)
        last = 3 if self.parity == "released" else None
        self.second = Objective(
            Term(kl_at, name="strong", temperatures=self.temperatures[:last], standardise=self.standardise)
        )
        self.second.terms[0].mask = self.mask
        self.second.settle(self.student, self.teacher)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        loss = super().transfer(student, teacher, batch)
        if (strong := self.second_view(batch)) is not None:
            student, teacher = self.student(strong), self.teacher(strong, reads={"logits"})
        loss = self.kd_weight(self.progress) * (loss + self.second(student, teacher, batch, self.progress))
        share = self.strong_task_weight(self.progress)
        if self.task is None or self.task.target not in batch or share == 0:
            return loss
        return loss + share * Loss({"task.strong": self.task.loss(student, batch).parts["task"]})

    def second_view(self, batch: Batch) -> Batch | None:
        """What both networks see the second time; None where that is what they saw the first time."""
        random = any(
            isinstance(transform, RandomTransform) for view in shown.views(self) for transform in view.transforms
        )
        if "view_seed" not in batch or not (self.strong or random):
            return None
        seeds = fold(batch["view_seed"], _SECOND)
        return {**shown.changed(batch, self, self.strong, seeds), "view_seed": seeds}
