"""Sequence-level distillation: the student learns the texts that the teacher writes (Kim and Rush 2016)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.errors import RecipeError
from limbeck.language.writing import Answers, Writing
from limbeck.memories import Entries
from limbeck.method import Batch, Card
from limbeck.randomness import seeds_for


class SeqKD(Writing):
    """-log q(y | x), a mean over answer tokens, for the answer y that the teacher gives to the data's prompt x.

    y is the mode of the teacher's sequence distribution as beam search finds it (`beams`; 1 is the most probable token
    each time), or, with `sampling_temperature` above 0 and one beam, a draw from it. Each prompt is answered once, when
    it first comes, and the answer is kept, also in the checkpoint. Teacher and student may have different tokenizers: the
    text goes from one to the other. `seq-kd+forward-kl` compares the distributions on the teacher's texts as well.
    """

    card = Card(
        "seq-kd",
        summary="The teacher answers every prompt once; the student learns these answers as if they were the data's.",
        paper="Kim, Rush: Sequence-Level Knowledge Distillation, EMNLP 2016, arXiv 1606.07947",
        needs=(),
        use_when="the teacher only writes, has another tokenizer, or is asked once and then gone",
        cost="one pass of the teacher per written token, once per training row; 4 bytes per token kept",
        across_tokenizers=True,
    )

    sampling_temperature: Annotated[float, Field(ge=0)] = 0.0
    beams: Annotated[int, Field(ge=1)] = 1

    def setup(self) -> None:
        super().setup()
        if self.teacher is None:
            raise RecipeError("seq-kd learns what a teacher writes, and there is none. Give teacher=...")
        self.answers = Answers(Entries.of(self.data.splits["train"]), self.max_new_tokens)

    def draw(self, batch: Batch) -> Batch:
        self.answers.renew(
            batch, 0, lambda rows: self.by_teacher(rows, seeds_for(rows["id"], self.progress.seed, 0), beams=self.beams)
        )
        return self.answers.put(batch, self.vocabulary, self.text_prompt)
