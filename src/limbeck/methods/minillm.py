"""MiniLLM: the reverse divergence between whole texts, by policy gradient (Gu, Dong, Wei and Huang 2024, arXiv 2306.08543)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from limbeck.errors import RecipeError, nearest
from limbeck.language.likelihood import log_probs_of, next_tokens
from limbeck.language.rollouts import undisturbed
from limbeck.language.writing import Writing, everywhere_summed
from limbeck.losses.policy import clipped_surrogate, discounted, remaining
from limbeck.method import Batch, Card, Outcome, Progress, Update
from limbeck.objectives import Loss, Objective, Term
from limbeck.randomness import uniform
from limbeck.schedules import Fraction, Scalar
from limbeck.signals import Signals

Values = Float[Tensor, "batch tokens"]


class MiniLLM(Writing):
    """policy + exact_weight * KL(q_t || p_t) + corpus_weight * (CE + KL(p || q)) / 2, each a mean over tokens.

    1. Texts are drawn token by token from (1 - a) q + a p, a = `mixture`.
    2. r_t = clip((log p - log q)(y_t) / `reward_scale`, +-`reward_clip`), q the student as it was then.
    3. A_t = sum_{k > t} discount^(k - t - 1) r_k / (how many tokens follow t): `returns=following`, for the exact
       term stands for r_t; `returns=all` begins at r_t itself, as the released code does. `whiten`: less its mean, divided
       by its standard deviation, over all written tokens (the released code also counts padding).
    4. policy = max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = q(y_t) / ((1 - a) q_old + a p)(y_t), `inner_epochs` times
       on the same texts. All but q is a constant.

    `corpus` names a further split of the data, plain text to stay close to. Start from a student that was taught on given
    texts.
    """

    card = Card(
        "minillm",
        summary="The student's whole texts are made likely under the teacher, by policy gradient.",
        paper="Gu, Dong, Wei, Huang: MiniLLM: Knowledge Distillation of Large Language Models, ICLR 2024, arXiv 2306.08543",
        use_when="long answers of a student that already writes; the student is to avoid what the teacher would not say",
        cost="one pass of student and teacher per written token; inner_epochs updates per step",
    )

    mixture: Fraction = 0.2
    discount: Annotated[float, Field(ge=0, le=1)] = 0.95
    returns: Literal["following", "all"] = "following"
    whiten: bool = True
    reward_scale: Annotated[float, Field(gt=0)] = 0.5
    reward_clip: Annotated[float, Field(gt=0)] = 100.0
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    inner_epochs: Annotated[int, Field(ge=1)] = 4
    exact_weight: Scalar = 1.0
    corpus: str | None = None
    corpus_weight: Scalar = 1.0
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(Term("reverse-kl", name="exact", weight=self.exact_weight))

    def setup(self) -> None:
        super().setup()
        if self.corpus is not None:
            if self.corpus not in self.data.splits:
                raise RecipeError(
                    f"minillm.corpus names the split '{self.corpus}'. {nearest(self.corpus, self.data.splits)}"
                )
            self.near = Objective(Term("kl", mask="answer", name="kl"))
            self.near.settle(self.student, self.teacher, self.task.target)

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        played = self.draw(batch)
        for _ in range(self.inner_epochs):
            yield Update("student", self.loss, played)

    def draw(self, batch: Batch) -> Batch:
        written = self.by_student(batch, teacher_share=self.mixture)
        tokens, answer = next_tokens(written), written["answer"]
        with undisturbed(self.student.model), torch.no_grad():
            ours, theirs = (
                log_probs_of(actor(written)["logits"], tokens, answer, self.terms.classes)
                for actor in (self.student, self.teacher)
            )
        reward = ((theirs - ours) / self.reward_scale).clamp(-self.reward_clip, self.reward_clip)
        advantage = self.advantage(reward, answer)
        played = written | {"advantage": self.whitened(advantage, answer) if self.whiten else advantage}
        return played | self._corpus(batch) if self.corpus is not None else played

    def advantage(self, reward: Values, answer: Bool[Tensor, "batch tokens"]) -> Values:
        """The returns, each divided by the number of tokens that they are a sum over."""
        returns = discounted(reward, answer, self.discount) / remaining(answer).clamp(min=1)
        if self.returns == "following":
            returns = torch.where(answer, torch.nn.functional.pad(returns, (0, 1))[:, 1:], 0)
        return returns

    def whitened(self, advantage: Values, answer: Bool[Tensor, "batch tokens"]) -> Values:
        """(A - mean) / (standard deviation + 1e-8) over the written tokens of all processes."""
        kept = advantage[answer].double()
        count, total, squares = everywhere_summed(torch.stack([answer.sum().double(), kept.sum(), kept.square().sum()]))
        mean = total / count
        deviation = ((squares - count * mean.square()).clamp(min=0) / (count - 1).clamp(min=1)).sqrt()
        return torch.where(answer, ((advantage - mean) / (deviation + 1e-8)).float(), 0)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        answer = batch["answer"]
        now = log_probs_of(student["logits"], next_tokens(batch), answer, self.terms.classes)
        values = clipped_surrogate(now - batch["old_log_probs"], batch["advantage"], self.clip)
        loss = Loss.mean("policy", values, answer) + super().transfer(student, teacher, batch)
        if self.corpus is None:
            return loss
        text: dict[str, Any] = {n.removeprefix("corpus_"): v for n, v in batch.items() if n.startswith("corpus_")}
        theirs, ours = self.teacher(text), self.student(text)
        near = self.near(ours, theirs, text, self.progress) + self.task.loss(ours, text)
        return loss + 0.5 * self.corpus_weight(self.progress) * Loss({f"corpus.{n}": p for n, p in near.parts.items()})

    def _corpus(self, batch: Batch) -> Batch:
        """As many rows of the corpus as the batch has, by the seeds of its rows."""
        assert self.corpus is not None
        split = self.data.splits[self.corpus]
        rows = (uniform(self.seeds(batch, -2)) * len(split)).long().clamp(max=len(split) - 1)
        device = batch["input_ids"].device
        return {f"corpus_{name}": value.to(device) for name, value in split.__getitems__(rows.tolist()).items()}
