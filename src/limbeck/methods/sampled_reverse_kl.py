"""On-policy distillation by a reward per written token: the teacher only scores what the student wrote."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from limbeck.language.likelihood import log_probs_of, next_tokens
from limbeck.language.writing import Writing
from limbeck.losses.policy import discounted
from limbeck.method import Batch, Card
from limbeck.objectives import Loss, Objective, Term
from limbeck.schedules import Scalar
from limbeck.signals import Signals


class SampledReverseKL(Writing):
    """-(q(y_t) / q_old(y_t)) A_t, a mean over written tokens; A_t = -sum_k discount^k (log q_old - log p)(y_{t+k}), a constant.

    y is drawn from the student as it was then, q_old, at `sampling_temperature`, restrictions included. At discount 0 each
    token is blamed for itself alone, and the expected gradient is that of KL(q_t || p_t) at the prefixes that were written,
    of which this is an estimate by one draw per position. The teacher's log-probability of the token is all that is read
    of it, so a server that gives log-probabilities is enough. Each prompt is answered `answers` times in a step.
    """

    card = Card(
        "sampled-reverse-kl",
        summary="The student writes, and each of its tokens is rewarded by how much likelier the teacher holds it.",
        paper="Thinking Machines: On-Policy Distillation, 2025, and the recipe of that name in its tinker-cookbook",
        use_when="the teacher is behind an endpoint, or its distribution is too large to compare whole",
        cost="one pass of the student per written token, one pass of the teacher per text; more variance than on-policy with reverse-kl",
    )

    answers: Annotated[int, Field(ge=1)] = 4
    discount: Annotated[float, Field(ge=0, le=1)] = 0.0
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(Term("reverse-kl", name="reward"))  # what is estimated; it checks that both tell tokens alike

    def draw(self, batch: Batch) -> Batch:
        return self.by_student(batch, answers=self.answers)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        tokens, answer, classes = next_tokens(batch), batch["answer"], self.terms.classes
        log_p = log_probs_of(teacher["logits"], tokens, answer, classes).detach()
        reward = discounted(log_p - batch["old_log_probs"], answer, self.discount)
        log_ratio = log_probs_of(student["logits"], tokens, answer, classes) - batch["old_log_probs"]
        return Loss.mean("reward", -log_ratio.exp() * reward, answer)
