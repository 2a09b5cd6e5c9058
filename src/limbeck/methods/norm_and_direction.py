"""ND, the feature half of KD++: the norm and the direction of features (Wang et al. 2023, arXiv 2305.17007)."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from limbeck.bridges.partial import shapes_of
from limbeck.errors import RecipeError
from limbeck.layers import LayerTransfer, on_device
from limbeck.losses.direction import class_sums, norm_and_direction
from limbeck.method import Card
from limbeck.objectives import Objective, Term, counted
from limbeck.schedules import Scalar

ROWS = 256  # of a pass over the data without a graph


class NormAndDirection(LayerTransfer):
    """task_weight * task + weight * mean over samples of 1 - <f_s, e_y> / max(|f_s|, |f_t|); KD++ is `kd+nd`.

    e_y is the direction of the mean of the teacher's embeddings of class y, found in one pass over the training rows
    before the first step and kept as the buffers `centres0`, ... (one per pair of layers). The student's feature turns
    towards it and grows until it is as long as the teacher's. Where widths differ, a linear map with batch
    normalisation brings the student's there, as published; equal widths are compared as they are.

    `mask` names a batch column (bool) of the samples that count, in the means as well.
    """

    card = Card(
        "nd",
        summary="Embeddings along the teacher's class means, and at least as long as the teacher's.",
        paper="Wang et al.: Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023, arXiv 2305.17007",
        needs=("embedding",),
        use_when="classification with labels, added to kd, dkd or dist (published weights 0.5 to 2)",
        cost="one pass of the teacher over the training rows at the start, then one forward pass per sample",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "embedding"

    weight: Scalar = 2.0

    def setup(self) -> None:
        if self.task is None or self.task.name != "classification":
            raise RecipeError(
                f"nd needs classes: it leads every sample to the mean of its class. The task is {self.task!r}; a method "
                "without classes that compares embeddings: fitnets, cka."
            )
        for i, centres in enumerate(self._centres()):
            self.register_buffer(f"centres{i}", centres)
        super().setup()

    def objective(self) -> Objective:
        terms = []
        for i, pair in enumerate(self.pairs):
            (ours,), (theirs,) = shapes_of(self.student, self.teacher, pair, "nd")
            bridge: str | nn.Module = "none"
            if ours != theirs:
                bridge = nn.Sequential(nn.Linear(ours, theirs), nn.BatchNorm1d(theirs))
                self.notices.append(
                    f"nd: the student's [{ours}] is brought to the teacher's [{theirs}] by a linear map with batch normalisation."
                )
            terms.append(Term(partial(self._apart, i), pair, bridge=bridge, mask=self.mask, name=f"direction{i}"))
        return Objective(*terms)

    def _apart(
        self,
        which: int,
        student: Float[Tensor, "batch width"],
        teacher: Float[Tensor, "batch width"],
        target: Int[Tensor, "batch"],
        mask: Bool[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch"]:
        return norm_and_direction(
            student, teacher, target=target, centres=self.get_buffer(f"centres{which}"), mask=mask
        )

    @torch.no_grad()
    def _centres(self) -> list[Float[Tensor, "classes width"]]:
        """The teacher's mean feature of each class over the training rows, for every pair of layers."""
        for pair in self.pairs:
            shapes = shapes_of(self.student, self.teacher, pair, "nd")
            if any(len(shape) != 1 for shape in shapes):
                raise RecipeError(
                    f"nd compares vectors; the student's {pair[0]} has shape {list(shapes[0])}, the teacher's {pair[1]} "
                    f"{list(shapes[1])}. Name the pooled embeddings: method.layers=[[place, place]]"
                )
        split, names = self.data.splits["train"], [theirs for _, theirs in self.pairs]
        classes = self.teacher.shapes["logits"][-1] if "logits" in self.teacher.shapes else len(self.task.labels or ())
        classes = max(classes, self.student.shapes["logits"][-1])
        sums = [torch.zeros(classes, self.teacher.shapes[name][0], dtype=torch.float64) for name in names]
        number = torch.zeros(classes, dtype=torch.float64)
        for start in range(0, len(split), ROWS):
            batch = on_device(self.teacher, split.__getitems__(list(range(start, min(start + ROWS, len(split))))))
            signals, target = self.teacher(batch, reads=names), batch[self.task.target]
            if self.mask is not None:
                target = target.masked_fill(~counted(batch, self.mask), -1)
            for name, own in zip(names, sums):
                found, rows = class_sums(signals[name], target, classes)
                own += found.cpu()
            number += rows.cpu()
        empty = (number == 0).sum().item()
        if empty:
            self.notices.append(
                f"nd: {empty} of {classes} classes have no training row, so nothing leads to their means."
            )
        return [(own / number.clamp(min=1)[:, None]).float() for own in sums]
