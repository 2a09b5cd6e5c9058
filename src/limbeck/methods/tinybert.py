"""TinyBERT: embeddings, hidden states, attention and predictions, layer by layer (Jiao et al. 2020, arXiv 1909.10351)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from limbeck.bridges import Identity, find
from limbeck.encoders import EncoderTransfer, Inside, mean_over_tokens
from limbeck.errors import RecipeError
from limbeck.losses import kl, mse
from limbeck.losses.token_relations import relation_scores
from limbeck.method import Batch, Card
from limbeck.objectives import Loss, Objective, Term
from limbeck.schedules import Scalar, to_schedule
from limbeck.signals import Signals


class TinyBERT(EncoderTransfer):
    """task_weight * task + weight * (embedding + sum over layers of (hidden + attention) + prediction), the paper's section 3.1.

    - embedding: MSE(W_e E_s, E_t) of what the first block is given; hidden: MSE(W_h H_s, H_t) behind each pair of layers,
      mean over the width and over all tokens that count. W_e and W_h (one for all layers) learn with the student where
      widths differ, and are left out where they do not.
    - attention: MSE of the scores Q K^T / sqrt(d), before the softmax, mean over heads and pairs of tokens that count.
    - prediction: KL at temperature 1, the paper's soft cross-entropy but for the teacher's entropy.

    Student layer m learns from teacher layer m N / M; `layers` pairs others, [[student's, teacher's], ...], counted from 1.
    The paper trains the layers first, on the task's texts, and the prediction afterwards, both without labels:
    `stages: [{method: {use: tinybert, prediction_weight: 0}}, {method: {use: kd, temperature: 1, task_weight: 0}}]`.
    Its data augmentation and its general distillation, on other texts, are the data's matter.
    """

    card = Card(
        "tinybert",
        summary="The student's embeddings, hidden states and attention follow the teacher's, every layer its own.",
        paper="Jiao, Yin, Shang, Jiang, Chen, Li, Wang, Liu: TinyBERT, Findings of EMNLP 2020, arXiv 1909.10351 (section 3.1)",
        needs=("logits", "hidden", "attention"),
        use_when="an encoder narrower and shallower than its teacher, with as many heads and the same tokenizer",
        cost="one forward pass of the teacher; heads x tokens^2 scores per pair of layers; two linear maps",
    )

    layers: list[tuple[int, int]] | None = None
    embedding_weight: Scalar = 1.0
    hidden_weight: Scalar = 1.0
    attention_weight: Scalar = 1.0
    prediction_weight: Scalar = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    task_weight: Scalar = 0.0

    def prepare(self) -> None:
        super().prepare()
        few, many = len(self.ours), len(self.theirs)
        if self.layers is None and few > many:
            raise RecipeError(
                f"tinybert: the student has {few} layers, the teacher {many}: pair them, method.layers=[[1, 1], ...]."
            )
        pairs = self.layers if self.layers is not None else [(m, m * many // few) for m in range(1, few + 1)]
        self.embeddings = self.ours.stream(0), self.theirs.stream(0)
        self.pairs = [(self.ours.stream(s), self.theirs.stream(t)) for s, t in pairs]
        self.attentions = []
        if self.attention_weight != 0:
            self.attentions = [(self.ours.attention(s), self.theirs.attention(t)) for s, t in pairs]
            ours, theirs = self.ours.heads, self.theirs.heads
            if ours.number != theirs.number or ours.groups != ours.number or theirs.groups != theirs.number:
                raise RecipeError(
                    f"tinybert compares attention head by head, and the student has {ours.number} heads, the teacher {theirs.number} (with "
                    f"{ours.groups} and {theirs.groups} of keys). Leave attention out (method.attention_weight=0), or take minilm."
                )
        self.notices.append(f"layers compared (student -> teacher): {', '.join(f'{s} -> {t}' for s, t in pairs)}")

    def objective(self) -> Objective:
        return Objective(
            Term(
                kl,
                temperature=self.temperature,
                scale=False,
                weight=to_schedule(self.prediction_weight),
                name="prediction",
            )
        )

    def setup(self) -> None:
        super().setup()
        self.fit_embedding, self.fit_hidden = (self._fit(*pair) for pair in (self.embeddings, self.pairs[0]))

    def _fit(self, ours: str, theirs: str) -> nn.Module:
        widths = self.student.shapes[ours][-1:], self.teacher.shapes[theirs][-1:]
        return Identity() if widths[0] == widths[1] else find("linear", *widths)

    def teacher_reads(self) -> set[str]:
        read = {self.embeddings[1], *(theirs for _, theirs in self.pairs)}
        read |= {name for _, names in self.attentions for name in names}
        return read | (super().teacher_reads() if self.prediction_weight != 0 else set())

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        counts = self.tokens(batch, teacher[self.embeddings[1]])
        both = counts[:, :, None] & counts[:, None, :]

        def between(name: str, fit: nn.Module, pair: tuple[str, str]) -> Loss:
            ours, theirs = fit(student[pair[0]]), teacher[pair[1]]
            return mean_over_tokens(name, mse(ours.flatten(0, 1), theirs.flatten(0, 1), mask=counts.flatten()), counts)

        def scores(inside: Inside, signals: Signals, names: tuple[str, ...]) -> Tensor:
            q, k, _ = inside.split(signals, names)
            return relation_scores(q, k, inside.heads.number, mask=counts)

        embedding, hidden, attention = (
            to_schedule(w)(self.progress) for w in (self.embedding_weight, self.hidden_weight, self.attention_weight)
        )
        loss = embedding * between("embedding", self.fit_embedding, self.embeddings)
        for i, pair in enumerate(self.pairs):
            loss = loss + hidden * between(f"hidden{i}", self.fit_hidden, pair)
        for i, (ours, theirs) in enumerate(self.attentions):
            looked = mse(scores(self.ours, student, ours), scores(self.theirs, teacher, theirs), dim=1, mask=both)
            loss = loss + attention * Loss.mean(f"attention{i}", looked)
        if self.prediction_weight != 0:
            loss = loss + self.terms(student, teacher, batch, self.progress)
        return loss
