"""CWD: channel-wise distillation for dense prediction (Shu et al. 2021, arXiv 2011.13256)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.bridges.partial import shapes_of, to_one_kind
from limbeck.layers import LayerTransfer
from limbeck.losses.channelwise import cwd
from limbeck.method import Card
from limbeck.objectives import Objective, Term
from limbeck.schedules import Scalar


class CWD(LayerTransfer):
    """task_weight * task + weight * sum over layers of T^2 mean_c KL(softmax_i(t_ci / T) || softmax_i(s_ci / T)).

    i are positions, c channels: each channel says where it is active. Without `layers` these are the logits in
    segmentation (a channel is a class; published weight 3), else the last feature map (published weight 50, through
    a 1x1 convolution where the shapes differ).

    `mask` names a batch column of the positions that count (bool, or labels: those below zero do not).
    """

    card = Card(
        "cwd",
        summary="Every channel of the student is active where the teacher's is.",
        paper="Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, arXiv 2011.13256 (eq. 4 to 6)",
        needs=("map",),
        use_when="segmentation, detection, and other outputs on maps",
        cost="one forward pass of the teacher per sample",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "map"

    weight: Scalar = 3.0
    temperature: Annotated[float, Field(gt=0)] = 4.0

    def prepare(self) -> None:
        dense = self.task is not None and self.task.name == "segmentation"
        if self.layers is not None or not dense:
            super().prepare()
        else:
            self.pairs = [("logits", "logits")]

    def objective(self) -> Objective:
        what = "channel-wise distillation"
        for pair in self.pairs:
            to_one_kind(*shapes_of(self.student, self.teacher, pair, what), what)
        return Objective(
            *(
                Term(cwd, pair, mask=self.mask, name=f"channels{i}", temperature=self.temperature)
                for i, pair in enumerate(self.pairs)
            )
        )
