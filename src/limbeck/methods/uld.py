"""Universal logit distillation: probabilities sorted by size, whatever the tokens are (Boizard et al. 2024, arXiv 2402.12030)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from limbeck.language.crossing import Crossing, constant, numbered, partners, per_sample, placed, rows_at
from limbeck.losses.across_tokenizers import by_rows, rows_of, sorted_l1
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Signals


class ULD(Crossing):
    """task_weight * CE + weight * mean over samples of the mean over positions of sum_v |sort(p)_v - sort(q)_v|.

    p and q are softmaxes at `temperature`, sorted from the greatest down, the shorter vocabulary filled up with zeros
    (the mean over samples is the released code's). With `pairs: position`, as in the paper, the t-th answer token of
    the student goes with the t-th of the teacher, up to the shorter answer, although both need not be at the same place
    in the text after the first difference. `pairs: chunk` (ours) compares the two where both are about to continue the
    same text: at the beginnings of chunks of bytes that both tokenisations share.
    """

    card = Card(
        "uld",
        summary="The student's next-token probabilities, sorted by size, match the teacher's, whatever tokens they belong to.",
        paper="Boizard, El Haddad, Hudelot, Colombo: Towards Cross-Tokenizer Distillation, 2024, arXiv 2402.12030",
        use_when="teacher and student have different tokenizers, beside the labels; alm uses more of what the teacher knows",
        cost="one forward pass of the teacher per text; two sorts of a vocabulary per token",
        across_tokenizers=True,
    )

    weight: Scalar = 1.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    pairs: Literal["position", "chunk"] = "position"

    def draw(self, batch: Batch) -> Batch:
        ours, theirs = numbered(batch["answer"]), numbered(self.theirs(batch)["answer"])
        if self.pairs == "chunk":
            ours, theirs = self.aligned_chunks(batch)
        partner = partners(ours, theirs, first=True)
        return batch | {"uld_partner": partner, "uld_weight": per_sample(partner >= 0)}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        z, w, partner = student["logits"], constant(teacher["logits"]), batch["uld_partner"]
        ours, theirs = rows_at(partner, w.shape[1])

        def gap(student: Tensor, teacher: Tensor) -> Tensor:
            return sorted_l1(student, teacher, temperature=self.temperature)

        values = by_rows(gap, rows_of(z, ours), rows_of(w, theirs))
        return Loss.mean("uld", placed(values, ours, partner), batch["uld_weight"])
