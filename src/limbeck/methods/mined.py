"""Teacher's probabilities on the student's tokens, by the fewest edits of their bytes (Wan et al. 2024, arXiv 2401.10491)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limbeck.language import alignment
from limbeck.language.crossing import Crossing, constant, partners, placed, rows_at
from limbeck.losses import kl
from limbeck.losses.across_tokenizers import by_rows, carried_over, probabilities, rows_of
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Signals


class MinED(Crossing):
    """task_weight * CE + weight * T^2 KL(M p || q), a mean over the places where both models are about to go on with the same text.

    M sends each of the teacher's tokens to the student's token that spells the same bytes or, with `matches: nearest`, the
    fewest insertions, deletions and exchanges of bytes away; M p is divided by its sum. Ends go to ends, other special
    tokens nowhere. The places are the beginnings of the chunks of bytes that both tokenisations share (ours: the paper
    puts the tokens of a text side by side by the same edit distance).
    """

    card = Card(
        "mined",
        summary="The teacher's probabilities are carried over to the student's most similar tokens and matched there.",
        paper="Wan, Huang, Cai, Quan, Bi, Shi: Knowledge Fusion of Large Language Models (FuseLLM), ICLR 2024, arXiv 2401.10491, its mapping of vocabularies",
        use_when="vocabularies of about the same size and kind with most tokens in common",
        cost="one forward pass of the teacher per text; once per pair of vocabularies some seconds for the mapping",
        across_tokenizers=True,
    )

    temperature: Annotated[float, Field(gt=0)] = 1.0
    matches: Literal["nearest", "exact"] = "nearest"
    task_weight: Scalar = 1.0

    def setup(self) -> None:
        super().setup()
        mine, theirs = self.both_tokenizers()
        sizes = [actor.shapes["logits"][-1] for actor in (self.student, self.teacher)]
        ours, others = mine.pieces[: sizes[0]], theirs.pieces[: sizes[1]]
        ends = {theirs.eos[0]: mine.eos[0]} if theirs.eos and mine.eos else {}
        find = alignment.nearest if self.matches == "nearest" else alignment.exact
        self.mapping = nn.Buffer(torch.from_numpy(find(others, ours, ends)), persistent=False)
        self.classes = len(ours)
        same = alignment.exact(others, ours, ends)
        self.notices.append(
            f"mined: {(same >= 0).mean():.0%} of the teacher's {len(others):,} tokens are tokens of the student too"
            + (
                ", the others go to the most similar one."
                if self.matches == "nearest"
                else ", the others are left out."
            )
        )

    def draw(self, batch: Batch) -> Batch:
        partner = partners(*self.aligned_chunks(batch), first=True)
        return batch | {"mined_partner": partner, "mined_counts": partner >= 0}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        z, w, partner = student["logits"], constant(teacher["logits"]), batch["mined_partner"]
        ours, theirs = rows_at(partner, w.shape[1])
        values = by_rows(self.compared, rows_of(z, ours), rows_of(w, theirs))
        return Loss.mean("mined", placed(values, ours, partner), batch["mined_counts"])

    def compared(self, z: Tensor, w: Tensor) -> Tensor:
        """One value per row of the student's and of the teacher's logits."""
        log_p = carried_over(probabilities(w[:, : len(self.mapping)], self.temperature), self.mapping, self.classes)
        return self.temperature**2 * kl(z[:, : self.classes] / self.temperature, log_p)
