"""DistilBERT: soft targets, the task, and hidden states in the same direction (Sanh et al. 2019, arXiv 1910.01108)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.bridges import Identity, find
from limbeck.encoders import EncoderTransfer, mean_over_tokens
from limbeck.losses import cosine, kl
from limbeck.method import Batch, Card
from limbeck.objectives import Loss, Objective, Term
from limbeck.schedules import Scalar, to_schedule
from limbeck.signals import Signals


class DistilBERT(EncoderTransfer):
    """task_weight * task + weight * (soft_weight T^2 KL(p_t || p_s) + cosine_weight (1 - cos(h_s, h_t))).

    h is the stream that the head reads; its cosine is a mean over all tokens that attention may look at, as is the
    divergence where there are logits for every token (masked language modelling: the task is then the loss on what was
    masked). `mask` names a column of the tokens whose logits are compared instead, `answer` for the masked ones only.
    The weights 5, 2 and 1 with T = 2 are those of the authors' released example.

    The student begins with every second layer of its teacher: `student: {model: "limbeck.models.shrink:build", args:
    {of: TEACHER, layers: 6, choose: alternate}}`. It has its teacher's width; another one goes through a linear map.
    """

    card = Card(
        "distilbert",
        summary="An encoder of half the depth: soft targets, and hidden states that point the teacher's way.",
        paper="Sanh, Debut, Chaumond, Wolf: DistilBERT, a Distilled Version of BERT, 2019, arXiv 1910.01108 (section 3)",
        needs=("logits", "hidden"),
        use_when="an encoder of the teacher's width and tokenizer, begun with its layers; masked language modelling or classification",
        cost="one forward pass of the teacher",
    )

    temperature: Annotated[float, Field(gt=0)] = 2.0
    soft_weight: Scalar = 5.0
    cosine_weight: Scalar = 1.0
    task_weight: Scalar = 2.0

    def prepare(self) -> None:
        super().prepare()
        self.hidden = self.ours.last(), self.theirs.last()

    def objective(self) -> Objective:
        per_token = len(self.student.shapes["logits"]) == 2
        mask = self.mask or ("attended" if per_token else None)
        return Objective(
            Term(kl, temperature=self.temperature, weight=to_schedule(self.soft_weight), mask=mask, name="soft")
        )

    def setup(self) -> None:
        super().setup()
        widths = [actor.shapes[name][-1:] for actor, name in zip((self.student, self.teacher), self.hidden)]
        self.fit = Identity() if widths[0] == widths[1] else find("linear", *widths)

    def teacher_reads(self) -> set[str]:
        return super().teacher_reads() | {self.hidden[1]}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        ours, theirs = self.fit(student[self.hidden[0]]), teacher[self.hidden[1]]
        counts = self.tokens(batch, theirs)
        turned = cosine(ours.flatten(0, 1), theirs.flatten(0, 1), mask=counts.flatten())
        weight = to_schedule(self.cosine_weight)(self.progress)
        soft = self.terms(student, teacher, batch | {"attended": counts}, self.progress)
        return soft + weight * mean_over_tokens("cosine", turned, counts)
