"""On-policy distillation, generalised: the student's own texts, the data's and the teacher's, any divergence (Agarwal et al. 2024)."""

from __future__ import annotations

from limbeck.language.writing import Writing
from limbeck.method import Batch, Card
from limbeck.methods.token_kd import Divergence, TokenKD
from limbeck.schedules import Fraction, Scalar


class OnPolicy(Writing, TokenKD):
    """D(p_t, q_t), a mean over answer tokens, on texts of a mixture of sources: no gradient through the writing.

    In each step a coin decides for the whole batch: with probability `student_share` (lambda of the paper) the student
    writes the answers, of what is left a `teacher_share` is written by the teacher, else they are the data's own. D is
    any divergence of `token-kd`, with its options; `beta` = 0.5 of `js` is the paper's middle one.
    `sampling_temperature` is that of the writing alone, `temperature` that of the loss alone, with T^2 in front. (TRL
    writes at 0.9.) Everything after the first end of text is cut off, the end itself counts. With student_share=0 this
    is `token-kd`.
    """

    card = Card(
        "on-policy",
        summary="The student writes, and the teacher's next-token distribution corrects what it wrote.",
        paper="Agarwal et al.: On-Policy Distillation of Language Models (GKD), ICLR 2024, arXiv 2306.13649",
        use_when="the student is to be good at its own texts; after some training on given ones",
        cost="in the share of steps in which the student writes, one pass per written token; one pass of the teacher per text",
    )

    divergence: Divergence = "js"
    student_share: Scalar = 0.5
    teacher_share: Fraction = 0.0

    def draw(self, batch: Batch) -> Batch:
        if self.coin(0) < self.student_share(self.progress):
            return self.by_student(batch)
        if self.coin(1) < self.teacher_share:
            return self.by_teacher(batch, self.seeds(batch, -1))
        return batch
