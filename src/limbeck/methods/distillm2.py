"""DistiLLM-2: texts of the teacher made likelier, those of the student less so (Ko et al. 2025, arXiv 2503.07067)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.language.likelihood import log_probs_of, next_tokens, rows_of, values_of
from limbeck.language.prompts import UNCOUNTED, one_below_the_other
from limbeck.language.writing import Answers, Writing
from limbeck.losses.token_divergences import skew_kl, skew_reverse_kl
from limbeck.memories import Entries
from limbeck.method import Batch, Card
from limbeck.objectives import Loss, Objective, Term
from limbeck.randomness import seeds_for
from limbeck.schedules import Scalar
from limbeck.signals import Signals


class DistiLLM2(Writing):
    """(2 - b) KL(p || a p + (1 - a) q) on the teacher's answer + b KL(q || (1 - a) p + a q) on the student's, to the same prompt.

    Each is a mean over the tokens of an answer, then over answers. b = 1, and with `gradual` 1 + min(1, 2 s / S) / 2 after s of
    S steps. The teacher answers every prompt once, the student once in each epoch. With `curriculum` every answer has a
    skew of its own, a = clip(1 - (1 - alpha) G / (P - Q + 1e-5), 0.01, alpha) on the teacher's, with Q - P for P - Q on the
    student's: P and Q are exp of the mean log-probability of its tokens under teacher and student, G the mean of that
    difference over the steps before (the first step has a = alpha). The released code has both switched off.
    """

    card = Card(
        "distillm-2",
        summary="What the teacher writes is made likelier, what the student writes is held against the teacher.",
        paper="Ko et al.: DistiLLM-2: A Contrastive Approach Boosts the Distillation of LLMs, ICML 2025, arXiv 2503.07067",
        use_when="prompts without answers, or answers worse than the teacher's; a student that already writes",
        cost="the teacher writes once per training row, the student once per row and epoch; two texts per row and step",
    )

    alpha: Annotated[float, Field(gt=0.01, lt=1)] = 0.1
    gradual: bool = False
    curriculum: bool = False
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        # read for its check that both tell the same tokens apart; `transfer` takes each answer's mean for itself
        return Objective(Term(skew_kl, name="teachers", alpha=self.alpha))

    def setup(self) -> None:
        super().setup()
        entries = Entries.of(self.data.splits["train"])
        self.theirs, self.ours = (Answers(entries, self.max_new_tokens) for _ in range(2))
        self.gaps = nn.Buffer(torch.zeros(2, 2))

    def draw(self, batch: Batch) -> Batch:
        epoch, seed = self.progress.epoch, self.progress.seed
        self.theirs.renew(batch, 0, lambda rows: self.by_teacher(rows, seeds_for(rows["id"], seed, 0)))
        self.ours.renew(batch, epoch, self.by_student)
        told, own = (a.put(batch, self.vocabulary, self.text_prompt) for a in (self.theirs, self.ours))
        stacked = one_below_the_other(told, own, self.vocabulary.pad)
        first = torch.arange(len(stacked["id"]), device=stacked["id"].device) < len(batch["id"])
        return stacked | {"teacher_wrote": first, "target": stacked["target"].where(first[:, None], UNCOUNTED)}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        ours, theirs, wrote = student["logits"], teacher["logits"], batch["teacher_wrote"]
        b = 1 + 0.5 * min(1.0, 2 * self.progress.fraction) if self.gradual else 1.0
        loss = Loss()
        gap = self.gap(ours, theirs, batch) if self.curriculum else None
        for name, weight, divergence, rows in (
            ("teachers", 2 - b, skew_kl, wrote),
            ("students", b, skew_reverse_kl, ~wrote),
        ):
            mask = batch["answer"] & rows[:, None]
            if gap is None:
                values = values_of(divergence, ours, theirs, mask, classes=self.terms.classes, alpha=self.alpha)
            else:
                values = self.row_by_row(divergence, ours, theirs, mask, self.skews(gap, wrote))
            loss = loss + weight * Loss.mean(name, values.sum(1) / mask.sum(1).clamp(min=1), mask.any(1))
        if gap is not None:
            loss.record |= {"gap": gap, "teacher_wrote": wrote}
        return loss

    def keep(self, record: dict[str, Tensor]) -> None:
        for kind in range(2) if self.curriculum else ():
            gap = record["gap"][record["teacher_wrote"] == (kind == 0)]
            self.gaps[kind] += torch.stack([gap.sum(), torch.full_like(gap, 1).sum()]).to(self.gaps)

    @torch.no_grad()
    def gap(self, ours: Any, theirs: Any, batch: Batch) -> Float[Tensor, "batch"]:
        """P - Q of the teacher's answers, Q - P of the student's."""
        answer, count = batch["answer"], batch["answer"].sum(1).clamp(min=1)
        p, q = (
            (log_probs_of(logits, next_tokens(batch), answer, self.terms.classes).sum(1) / count).exp()
            for logits in (theirs, ours)
        )
        return torch.where(batch["teacher_wrote"], p - q, q - p)

    def skews(self, gap: Float[Tensor, "batch"], wrote: Bool[Tensor, "batch"]) -> list[float]:
        """The skew of every answer: small where it is nearer to being learnt than answers were so far."""
        sums, counts = self.gaps[torch.where(wrote, 0, 1)].to(gap).unbind(1)
        skews = (1 - (1 - self.alpha) * sums / counts.clamp(min=1) / (gap + 1e-5)).clamp(0.01, self.alpha)
        return torch.where(counts > 0, skews, self.alpha).tolist()

    def row_by_row(
        self,
        divergence: Callable[..., Tensor],
        ours: Any,
        theirs: Any,
        mask: Bool[Tensor, "batch tokens"],
        skews: list[float],
    ) -> Float[Tensor, "batch tokens"]:
        """The divergence of every row with a skew of its own."""
        parts = [slice(i, i + 1) for i in range(len(skews))]
        return torch.cat(
            [
                values_of(
                    divergence, rows_of(ours, i), rows_of(theirs, i), mask[i], classes=self.terms.classes, alpha=skew
                )
                for i, skew in zip(parts, skews, strict=True)
            ]
        )
