"""Approximate likelihood matching: chunks of text are as likely to the student as to its teacher (Minixhofer et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.language.bias import Biases, counts_of
from limbeck.language.crossing import Crossing, Group, constant, partners, placed, rows_at
from limbeck.language.likelihood import log_probs_of, next_tokens
from limbeck.language.tokens import Tokens
from limbeck.losses.across_tokenizers import (
    Binarised,
    binarised,
    by_rows,
    chunk_sums,
    first_of_chunks,
    last_of_chunks,
    merged_chunks,
    rows_of,
)
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Signals


class ALM(Crossing):
    """A mean over chunks c of f(exp(l_c(teacher) / T - e), exp(l_c(student) / T - e)); no labels by default.

    l_c is the log-likelihood of a stretch of text that both tokenisations delimit: the sum of its tokens' log-probabilities.
    f compares two coins, the chunk comes or it does not (`form`, see `limbeck.losses.across_tokenizers.binarised`).

    - `chunks: all`: every common boundary closes a chunk. `space`: only one before a space (or the end). `unbiased`: only one
      after which neither last token forbids, by being a token, ways to go on that the other allows: "th" is never followed
      by "e" where "the" is a token, so what comes before such an end is not comparable. That share of the ways to go on
      is estimated from the training texts (`limbeck.language.bias`; the estimate is ours) and may be `threshold` at most.
    - `append_space`: the chunk's likelihood is that of the chunk and a space or end after it.
    - `sizes`: how many consecutive chunks are taken together; of several sizes the mean.
    """

    card = Card(
        "alm",
        summary="Every chunk of text is as likely to the student as it is to the teacher, whatever their tokens are.",
        paper="Minixhofer, Vulic, Ponti: Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching, NeurIPS 2025, arXiv 2503.20083",
        use_when="teacher and student have different tokenizers, also subwords and bytes; a model that is to get another tokenizer",
        cost="one forward pass of the teacher per text; one log-probability per token on either side",
        across_tokenizers=True,
    )

    form: Binarised = "binary-ce"
    temperature: Annotated[float, Field(gt=0)] = 100.0
    epsilon: Annotated[float, Field(gt=0)] = 1e-6
    chunks: Literal["all", "space", "unbiased"] = "unbiased"
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1
    append_space: bool = False
    sizes: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = [1]
    task_weight: Scalar = 0.0

    def setup(self) -> None:
        super().setup()
        self._biases: Biases | None = None
        self._tables: tuple[Tensor, Tensor, Tensor] | None = None
        if len(set(self.sizes)) < len(self.sizes):
            raise RecipeError(f"alm.sizes names a size twice: {self.sizes}.")
        if self.chunks == "all" and not self.append_space:
            return
        mine, theirs = self.both_tokenizers()
        self._tables = spaced(mine), spaced(theirs), special(mine)
        if self.chunks == "unbiased":
            ours, others = counts_of(self.data.splits["train"], mine.size, theirs.size)
            self._biases = Biases(theirs.pieces, others, mine.pieces, ours)

    def draw(self, batch: Batch) -> Batch:
        group, teacher_group = self.aligned_chunks(batch)
        if self.chunks != "all":
            closes = self.closing(batch, group, teacher_group)
            whole = closes.sum(1, keepdim=True)
            group, teacher_group = (merged_chunks(g, closes) for g in (group, teacher_group))
            group, teacher_group = (torch.where(g < whole, g, -1) for g in (group, teacher_group))
        for size in self.sizes:
            ours, theirs = group, teacher_group
            if size > 1:
                ours, theirs = (torch.where(g >= 0, g // size, -1) for g in (ours, theirs))
            partner = partners(ours, theirs)
            batch = batch | {f"alm_group_{size}": ours, f"alm_teacher_group_{size}": theirs}
            batch = batch | {f"alm_partner_{size}": partner, f"alm_counts_{size}": partner >= 0}
        return batch

    def closing(self, batch: Batch, group: Group, teacher_group: Group) -> Bool[Tensor, "batch chunks"]:
        """Which chunks are comparable where they end; the others go on into the next one."""
        assert self._tables is not None
        chunks = group.shape[1]
        begins, ends = first_of_chunks(group, chunks), last_of_chunks(group, chunks)
        token = next_tokens(batch).gather(1, begins.clamp(min=0))
        begins_word, _, silent = (table.to(token.device) for table in self._tables)
        here = begins >= 0
        final = here & silent[token]
        last = here & ~torch.nn.functional.pad(here, (0, 1))[:, 1:]
        if self.chunks == "space":
            return final | last | torch.nn.functional.pad((begins_word[token] & here) | final, (0, 1))[:, 1:]
        theirs = last_of_chunks(teacher_group, chunks)
        pair = torch.stack(
            [
                next_tokens(self.theirs(batch)).gather(1, theirs.clamp(min=0)),
                next_tokens(batch).gather(1, ends.clamp(min=0)),
            ],
            -1,
        )
        assert self._biases is not None
        both = here & (theirs >= 0) & ~final
        fair = torch.zeros_like(here)
        fair[both] = self._biases.of(pair[both]) <= self.threshold
        return final | fair

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        z, w, size = student["logits"], constant(teacher["logits"]), self.sizes[0]
        ours, theirs = batch[f"alm_group_{size}"], batch[f"alm_teacher_group_{size}"]
        log_q = log_probs_of(z, next_tokens(batch), ours >= 0)
        log_p = log_probs_of(w, next_tokens(self.theirs(batch)), theirs >= 0)
        loss = Loss()
        for size in self.sizes:
            group, counts = batch[f"alm_group_{size}"], batch[f"alm_counts_{size}"]
            places, chunks = group.clamp(min=0), group.shape[1]
            s = chunk_sums(log_q, group, chunks).gather(1, places)
            t = chunk_sums(log_p, batch[f"alm_teacher_group_{size}"], chunks).gather(1, places)
            if self.append_space:
                s, t = self._and_space(s, t, z, w, batch, size)
            values = binarised(s, t, form=self.form, temperature=self.temperature, epsilon=self.epsilon, mask=counts)
            name = "alm" if len(self.sizes) == 1 else f"alm.{size}"
            loss = loss + 1 / len(self.sizes) * Loss.mean(name, values, counts)
        return loss

    def _and_space(self, s: Tensor, t: Tensor, z: Any, w: Any, batch: Batch, size: int) -> tuple[Tensor, Tensor]:
        """Log-likelihoods at the ends of chunks, with that of a space or an end after them; ends of answers have none."""
        assert self._tables is not None
        mine, theirs, silent = (table.to(s.device) for table in self._tables)
        partner = batch[f"alm_partner_{size}"]
        ends = silent[next_tokens(batch)]
        open_ = torch.where(ends, -1, partner)
        ours, others = rows_at(open_, w.shape[1])
        after = [
            by_rows(log_mass(table), rows_of(x, at + 1)) for x, at, table in ((z, ours, mine), (w, others, theirs))
        ]
        added = [placed(values, ours, partner) for values in after]
        return s + added[0], t + added[1]


def log_mass(members: Bool[Tensor, "classes"]) -> Callable[[Tensor], Tensor]:
    """A function from rows of logits to the log of the probability that `members` have together."""

    def value(logits: Tensor) -> Tensor:
        logits = logits[:, : len(members)]
        return logits.masked_fill(~members, -torch.inf).logsumexp(-1) - logits.logsumexp(-1)

    return value


def spaced(tokens: Tokens) -> Bool[Tensor, "classes"]:
    """Tokens before which a word has ended: those that begin with a space, and those that end a text."""
    found = torch.tensor([piece.startswith(b" ") for piece in tokens.pieces])
    found[list(tokens.eos)] = True
    return found


def special(tokens: Tokens) -> Bool[Tensor, "classes"]:
    """Tokens that spell nothing."""
    return torch.tensor([not piece for piece in tokens.pieces])
