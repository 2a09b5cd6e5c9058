"""Self-distillation with progressive refinement of targets (Kim, Ji, Yoon and Hwang 2021, arXiv 2006.12000)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.losses import soft_cross_entropy
from limbeck.memories import Entries
from limbeck.method import Batch, Card, Method, Outcome, Progress, Update
from limbeck.objectives import Loss
from limbeck.schedules import Fraction

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PSKD(Method):
    """Cross-entropy against t = (1 - a) onehot(y) + a p, p the student's own probabilities an epoch ago (equation 4).

    a = share * (epoch + 1) / epochs, epochs counted from 0, so the last epoch has all of `share` (equation 6). p is what
    the student gave for the sample as it was shown then, in training mode, before that step. A row that was never seen
    has p = onehot(y). The table has one entry per training row and class, kept in `dtype`: fp16 halves it.
    """

    card = Card(
        "ps-kd",
        summary="The student's own last answers soften its labels, more and more.",
        paper="Kim, Ji, Yoon, Hwang: Self-Knowledge Distillation with Progressive Refinement of Targets, ICCV 2021, arXiv 2006.12000",
        needs=(),
        teacher_mode="none",
        use_when="no teacher; classification where calibration matters",
        cost="no further passes; rows x classes numbers of memory",
    )

    share: Fraction = 0.8
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"

    def setup(self) -> None:
        if self.task is None or self.task.name != "classification" or len(self.student.shapes["logits"]) != 1:
            raise RecipeError(
                f"ps-kd remembers one distribution over classes per training row; it needs task=classification and logits [classes], and here are "
                f"{self.task.name if self.task else 'no task'} and logits {list(self.student.shapes['logits'])}."
            )
        self.entries = Entries.of(self.data.splits["train"])
        classes = self.student.shapes["logits"][0]
        self.past = nn.Buffer(torch.zeros(len(self.entries), classes, dtype=_DTYPES[self.dtype]))
        self.seen = nn.Buffer(torch.zeros(len(self.entries), dtype=torch.bool))

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        share = self.share * (progress.epoch + 1) / progress.epochs
        outcome = yield Update("student", self.loss, batch | {"ps_kd_target": self.refined(batch, share)})
        entries = self.entries(outcome.record["ps_kd_id"])
        self.past[entries] = outcome.record["ps_kd_said"].to(self.past.dtype)
        self.seen[entries] = True

    def refined(self, batch: Batch, share: float) -> Float[Tensor, "batch classes"]:
        """The labels, mixed with what was said an epoch ago of the rows that were seen."""
        entries = self.entries(batch["id"])
        onehot = torch.nn.functional.one_hot(batch[self.task.target], self.past.shape[1]).float()
        past = torch.where(self.seen[entries, None], self.past[entries].float(), onehot)
        return (1 - share) * onehot + share * past

    def loss(self, batch: Batch) -> Loss:
        logits = self.student(batch)["logits"]
        loss = Loss.mean("refined", soft_cross_entropy(logits, batch["ps_kd_target"]))
        loss.record |= {"ps_kd_id": batch["id"], "ps_kd_said": logits.detach().float().softmax(-1)}
        return loss
