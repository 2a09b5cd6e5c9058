"""USKD: self-distillation with customised soft labels (Yang, Zeng, Li, Zhang, Yuan and Li 2023, arXiv 2303.13005)."""

from __future__ import annotations

from typing import Literal

from limbeck import layers
from limbeck.errors import RecipeError
from limbeck.losses import cross_entropy, soft_cross_entropy
from limbeck.losses.nontarget import without_target
from limbeck.losses.selfteaching import confident_cross_entropy, rank_scores, zipf_labels
from limbeck.method import Batch, Card, Method
from limbeck.models.exits import pooled_head
from limbeck.objectives import Loss
from limbeck.schedules import Fraction, Scalar, to_schedule


class USKD(Method):
    """task + target_weight * L_tgt + others_weight * L_non + weak_weight * L_weak.

    L_tgt: cross-entropy of the right class, weighted by how sure the student is within its batch. L_non: cross-entropy
    among the other classes against Zipf's law, the classes ranked by a weak head together with the student itself.
    L_weak: the weak head's cross-entropy against labels smoothed by `smoothing`; it reads the mean over positions of an
    earlier stage (`place`; None: the last but one that is found), with its gradient, and is left behind at export.

    `rank_mode`: `prob` as the paper's formula reads, `code` with log-probabilities of the student as released.
    """

    card = Card(
        "uskd",
        summary="The student's own sureness and its ranking of the wrong classes make soft labels; no teacher.",
        paper="Yang et al.: From Knowledge Distillation to Self-Knowledge Distillation (USKD), ICCV 2023, arXiv 2303.13005",
        needs=(),
        teacher_mode="none",
        use_when="no teacher; classification with many classes",
        cost="one linear layer; no further passes",
    )

    place: str | None = None
    target_weight: Scalar = 0.1
    others_weight: Scalar = 0.1
    weak_weight: Scalar = 0.1
    smoothing: Fraction = 0.1
    rank_mode: Literal["prob", "code"] = "prob"

    def prepare(self) -> None:
        place = self.place
        if place is None:
            split = self.data.splits["train"]
            batch = layers.on_device(self.student, split.__getitems__(list(range(min(2, len(split))))))
            found = layers.stages(self.student, batch)
            place = found[-2] if len(found) > 1 else found[0]
            self.notices.append(f"uskd's weak head reads {place}. Another: method.place=PATH")
        self.early = layers.listen(self.student, place)

    def setup(self) -> None:
        logits = self.student.shapes["logits"]
        if self.task is None or self.task.name != "classification" or len(logits) != 1 or logits[0] < 2:
            raise RecipeError(
                f"uskd ranks the classes of a sample: needed are task=classification and logits of at least 2 classes, and here are "
                f"{self.task.name if self.task else 'no task'} and logits {list(logits)}."
            )
        self.weak = pooled_head(self.student.shapes[self.early], logits[0])

    def loss(self, batch: Batch) -> Loss:
        signals, target = self.student(batch), batch[self.task.target]
        logits, weak = signals["logits"], self.weak(signals[self.early])
        others = zipf_labels(rank_scores(weak, logits, target, mode=self.rank_mode), target)
        sure = Loss.batch("target", confident_cross_entropy, student=logits, target=target)
        ranked = Loss.mean("others", soft_cross_entropy(without_target(logits, target), others))
        smooth = Loss.mean("weak", cross_entropy(weak, target, label_smoothing=self.smoothing))
        loss = self.task.loss(signals, batch)
        for weight, term in ((self.target_weight, sure), (self.others_weight, ranked), (self.weak_weight, smooth)):
            loss = loss + to_schedule(weight)(self.progress) * term
        return loss
