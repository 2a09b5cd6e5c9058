"""DistiLLM: skewed divergences, and the student's own texts as they become needed (Ko, Kim, Chen and Yun 2024, arXiv 2402.03898)."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from limbeck.language.prompts import UNCOUNTED
from limbeck.language.replay import Replay
from limbeck.language.writing import Writing, everywhere, everywhere_summed
from limbeck.method import Batch, Card
from limbeck.methods.token_kd import divergence_term
from limbeck.objectives import Loss, Objective, Part
from limbeck.schedules import Fraction, Scalar


class DistiLLM(Writing):
    """Skewed KL per token, a mean over answer tokens; on the student's own texts with a probability that grows when it forgets.

    The loss is KL(p || alpha p + (1 - alpha) q) (`skew-kl`) or KL(q || (1 - alpha) p + alpha q) (`skew-reverse-kl`). In each
    step u is drawn uniformly, the same on every process. With phi that probability and s of S steps done:

    - u < phi (1 - s / S): the student writes, and what it wrote is kept;
    - u < phi otherwise: texts that were kept, drawn at random (the student writes while fewer than `capacity` are kept);
    - else: the data's own answers.

    phi begins at `start`. Whenever the validation loss (cross-entropy per token) is at least `tolerance` above the one
    before, phi grows by `increase`, to 1 at most. phi, that loss and the kept texts are buffers.
    """

    card = Card(
        "distillm",
        summary="A bounded divergence, and the student's own texts only as validation asks for them.",
        paper="Ko, Kim, Chen, Yun: DistiLLM: Towards Streamlined Distillation for Large Language Models, ICML 2024, arXiv 2402.03898",
        use_when="instruction data with answers, and little time to write: on-policy texts are used again",
        cost="one pass of the teacher per text; the student writes in some steps only; capacity x longest row x 8 bytes",
    )

    divergence: Literal["skew-kl", "skew-reverse-kl"] = "skew-kl"
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    capacity: Annotated[int, Field(ge=1)] = 1000
    start: Fraction = 0.0
    increase: Fraction = 0.1
    tolerance: Annotated[float, Field(ge=0)] = 0.1
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(divergence_term(self.divergence, temperature=1.0, beta=0.5, alpha=self.alpha, k=1))

    def setup(self) -> None:
        super().setup()
        self.replay = Replay(self.capacity, self.longest(), pad=self.vocabulary.pad, pieces=self.vocabulary.pieces)
        self.share = nn.Buffer(torch.tensor(self.start))
        self.before = nn.Buffer(torch.tensor(math.nan))
        self.heard = nn.Buffer(torch.zeros(2, dtype=torch.float64))

    def draw(self, batch: Batch) -> Batch:
        self._judge()
        u, share = self.coin(0), float(self.share)
        if u >= share:
            return batch
        if u < share * (1 - self.progress.fraction) or not self.replay.full:
            written = self.by_student(batch)
            none = torch.zeros_like(batch["id"], dtype=torch.bool) if batch.get("ghost") else None
            self.replay.push(everywhere(self.replay.kept(written, none)))
            return written
        kept = self.replay.draw(batch, self.seeds(batch, -1))
        return kept | {"target": torch.full_like(kept["target"], UNCOUNTED)}

    def selection(self, batch: Batch) -> Loss:
        """The task's loss; what it comes to over the whole validation split is remembered until the next step."""
        loss = super().selection(batch)
        part: Any = loss.parts["task"]
        assert isinstance(part, Part)
        sums = torch.stack([part.sum.detach().double(), torch.as_tensor(part.count).to(part.sum.device).double()])
        self.heard.add_(everywhere_summed(sums * (not batch.get("ghost"))))
        return loss

    def _judge(self) -> None:
        """After a validation: whether the student did worse than in the one before."""
        if not self.heard[1]:
            return
        now = self.heard[0] / self.heard[1]
        if now >= self.before + self.tolerance:  # never of the first one, which nothing stands before
            self.share.add_(self.increase).clamp_(max=1.0)
        self.before.copy_(now)
        self.heard.zero_()
