"""MGDFR: distil only from what both modalities know (after "The modality focusing hypothesis", ICLR 2023).

A teacher helps across modalities as far as what decides its answer can be seen in the student's modality as well. Three
steps: teacher and student learn together with their logits drawn to each other; the salience of each of the teacher's
features is how much further from the student's logits its own fall when that feature is shuffled between samples; and
the student is distilled from the teacher whose least salient features are held fixed.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.layers import embedding, listen
from limbeck.losses import kl, mse
from limbeck.method import Batch, Card, Method, Procedure, Stage, StageResult, Transfer
from limbeck.objectives import Loss
from limbeck.schedules import Scalar, to_schedule
from limbeck.signals import Signals


class JointTraining(Method):
    """task(s) + task(t) + match_weight * mean squared difference of the logits, with gradients into both."""

    card = Card("mgdfr-joint", "Stage 1 of mgdfr: teacher and student learn together.", listed=False)

    match_weight: Scalar = 1.0

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, self.teacher.model]}

    def loss(self, batch: Batch) -> Loss:
        ours, theirs = self.student(batch), self.teacher(batch)
        (own,) = self.task.loss(ours, batch).parts.values()
        (other,) = self.task.loss(theirs, batch).parts.values()
        apart = mse(ours["logits"], theirs["logits"], dim=1)
        weight = to_schedule(self.match_weight)(self.progress)
        return Loss({"task.student": own, "task.teacher": other}) + weight * Loss.mean("match", apart)


class FromSalient(Transfer):
    """KD (T^2 KL) from the teacher with its less salient features held at their mean."""

    card = Card("mgdfr-distil", "Stage 2 of mgdfr: distillation from the salient features.", listed=False)

    temperature: float = 4.0

    def __init__(self, tap: str, fixed: Bool[Tensor, "features"], value: Float[Tensor, "features"], **options: Any):
        super().__init__(**options)
        self.tap = tap
        self.register_buffer("fixed", fixed)
        self.register_buffer("value", value)

    def loss(self, batch: Batch) -> Loss:
        student = self.student(batch)
        loss = to_schedule(self.weight)(self.progress) * self.transfer(student, self.shown(batch), batch)
        return loss + to_schedule(self.task_weight)(self.progress) * self.task.loss(student, batch)

    def shown(self, batch: Batch) -> Signals:
        """What the teacher says when only its salient features vary."""
        return self.teacher(batch, replace={self.tap: lambda h: hold(h, self.fixed, self.value)})  # type: ignore[arg-type]

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        return Loss.mean("kl", kl(student["logits"], teacher["logits"], temperature=self.temperature, dim=1))


class MGDFR(Procedure):
    """Joint training, salience, distillation.

    `share` of the features, the most salient ones, stay free; the others are held at their mean over the training rows
    (`hold=mean`), at zero, or not at all (`none`, which is what the code of a published comparison does). The features
    are those before the teacher's last linear layer, or at `layer`. Salience is measured on `samples` training rows.
    """

    card = Card(
        "mgdfr",
        summary="The student learns from the teacher's features that both modalities share.",
        paper="Xue et al.: The Modality Focusing Hypothesis, ICLR 2023; as a baseline in MST-Distill (arXiv 2507.07015)",
        needs=("logits", "embedding"),
        use_when="only a part of what the teacher sees can be seen in the student's modality",
        cost="one joint training, then one teacher pass per feature over `samples` rows, then KD",
    )

    temperature: Annotated[float, Field(gt=0)] = 4.0
    task_weight: Scalar = 1.0
    weight: Scalar = 1.0
    match_weight: Scalar = 1.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    hold: Literal["mean", "zero", "none"] = "mean"
    layer: str | None = None
    samples: Annotated[int, Field(ge=2)] = 512
    joint: dict[str, Any] = {"epochs": 1}

    def stages(self) -> Generator[Stage, StageResult, None]:
        """Joint training (left out with `joint: {epochs: 0}`), then distillation from what turned out salient."""
        if self.joint.get("epochs", 1) != 0:
            yield Stage("joint", JointTraining(match_weight=self.match_weight), train={"select": "last"} | self.joint)
        rows = self._rows()
        tap = listen(self.teacher, self.layer) if self.layer else embedding(self.teacher, rows)
        found = self.remember("salience", self.salience, tap, rows)
        count = max(1, round(self.share * len(found["salience"])))
        fixed = torch.ones(len(found["salience"]), dtype=torch.bool)
        fixed[found["salience"].topk(count).indices] = False
        options = {"temperature": self.temperature, "weight": self.weight, "task_weight": self.task_weight}
        value = found["mean"] if self.hold == "mean" else torch.zeros_like(found["mean"])
        yield Stage("distil", FromSalient(tap, fixed if self.hold != "none" else fixed & False, value, **options))

    def _rows(self) -> Batch:
        split = self.data.splits["train"]
        some = torch.linspace(0, len(split) - 1, min(self.samples, len(split))).long().unique()
        device = next(self.student.model.parameters()).device
        rows = split.__getitems__(some.tolist())
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in rows.items()}

    @torch.no_grad()
    def salience(self, tap: str, rows: Batch) -> dict[str, Tensor]:
        """Per feature: by how much the mean squared distance of the logits grows when it is shuffled between samples.

        The rows are moved by half their number, a shuffle without a fixed point that is the same in every run.
        """
        self.student.model.eval()
        student: Tensor = self.student(rows)["logits"]
        plain = self.teacher(rows)
        before = mse(plain["logits"], student, dim=1).mean()
        feature = plain[tap]
        found = []
        for index in range(feature.shape[1]):
            shuffled = self.teacher(rows, replace={tap: partial(shuffle, index=index)})
            found.append(mse(shuffled["logits"], student, dim=1).mean() - before)
        mean = feature.float().transpose(0, 1).flatten(1).mean(1)
        return {"salience": torch.stack(found).cpu(), "mean": mean.cpu()}


def shuffle(feature: Float[Tensor, "batch features ..."], index: int) -> Float[Tensor, "batch features ..."]:
    """The same features, but for one that comes from another sample (half the batch further)."""
    moved = feature.clone()
    moved[:, index] = feature[:, index].roll(max(1, len(feature) // 2), 0)
    return moved


def hold(
    feature: Float[Tensor, "batch features ..."], fixed: Bool[Tensor, "features"], value: Float[Tensor, "features"]
) -> Float[Tensor, "batch features ..."]:
    """The same features, the `fixed` ones replaced by their `value`."""
    shape = (1, -1, *[1] * (feature.dim() - 2))
    return torch.where(fixed.view(shape), value.view(shape).to(feature.dtype), feature)


__all__ = ["MGDFR", "FromSalient", "JointTraining"]
