"""ReviewKD: knowledge review (Chen et al. 2021, arXiv 2104.09044)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from limbeck import layers
from limbeck.bridges.as_map import as_map
from limbeck.bridges.review import Review
from limbeck.losses.review import hcl
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Linear, Scalar
from limbeck.signals import Signals


class ReviewKD(layers.LayerTransfer):
    """task_weight * task + weight * sum over levels l of HCL(review_l(student levels l and deeper), teacher level l).

    From the deepest level up, each of the student's maps is fused with all deeper ones (attention-based fusion) and
    compared with the teacher's map of that level, at full size and in coarser windows (hierarchical context loss). With
    `pooled` the embeddings are one more level, the deepest, as a map of one pixel. The fusion learns with the student
    and is left behind.

    The published weight rises to its value in the first 20 of 240 epochs; so it does here, in the first twelfth of the
    stage (weights published per pair lie between 0.6 and 8). The paper compares maps before their ReLU; what is compared
    here is what `layers` names. HCL is a mean over all entries of a map and over the samples, summed over levels.
    """

    card = Card(
        "reviewkd",
        summary="Each level of the student, reviewed with all deeper ones, matches the teacher's level.",
        paper="Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021, arXiv 2104.09044",
        needs=("a map of each resolution", "embedding"),
        use_when="teacher and student are convolutional networks, of one family or not",
        cost="one forward pass of the teacher and a few small convolutions on the student's maps per sample",
    )
    proposes = "stages"

    weight: Scalar = Linear(start=0.0, end=1.0, until=1 / 12)
    width: Annotated[int, Field(ge=1)] = 512
    pooled: bool = True

    def prepare(self) -> None:
        super().prepare()
        if self.pooled and self.layers is None:
            split = self.data.splits["train"]
            batch = split.__getitems__(list(range(min(2, len(split)))))
            pooled = layers.embedding(self.student, batch), layers.embedding(self.teacher, batch)
            if self._place(self.student, self.pairs[-1][0]) != self.student.paths[pooled[0]]:  # not in them already
                self.pairs.append(pooled)

    def setup(self) -> None:
        super().setup()
        ours = [as_map(self.student.shapes[name]) for name, _ in self.pairs]
        theirs = [as_map(self.teacher.shapes[name]) for _, name in self.pairs]
        self.ours, self.theirs = (nn.ModuleList(bridge for bridge, _ in side) for side in (ours, theirs))
        self.review = Review([shape for _, shape in ours], [shape for _, shape in theirs], width=self.width)

    def teacher_reads(self) -> set[str]:
        return {name for _, name in self.pairs}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        maps = self.review([lay(student[name]) for lay, (name, _) in zip(self.ours, self.pairs)])
        targets = [lay(teacher[name]) for lay, (_, name) in zip(self.theirs, self.pairs)]
        apart = [hcl(ours, theirs) for ours, theirs in zip(maps, targets)]
        return Loss.mean("review", torch.stack(apart).sum(0))
