"""GOLD: tokens of both vocabularies compared directly, the others by size, chunk by chunk, on the student's own texts (TRL, 2025)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limbeck.language import alignment
from limbeck.language.crossing import Crossing, Group, constant, partners, per_sample, placed, retold, rows_at
from limbeck.language.likelihood import log_probs_of, next_tokens
from limbeck.language.writing import Writing
from limbeck.losses.across_tokenizers import (
    by_rows,
    chunk_sums,
    first_of_chunks,
    last_of_chunks,
    probabilities,
    rows_of,
    sorted_gap,
    unnormalised_js,
)
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Projection, Signals


class GOLD(Writing, Crossing):
    """Mean over samples of the mean over chunks of w_m JS_beta(P_g, Q_g on matched tokens) + w_u sorted L1 on the others.

    A chunk g is a stretch of text that both tokenisations delimit; ends are left out. Its distribution is that of its
    last token times the probabilities of those before it, P_g(v) = P_last(v) prod_{j < last} P_j(x_j), so it does not sum
    to 1 (`merge: observed` is TRL's own default, the rows of one token later, first row times the later ones; for parity).
    Matched are tokens that spell the same bytes in both vocabularies. `beta` runs from KL(P || Q) at 0 to KL(Q || P) at 1;
    `mass` adds at both ends what keeps the divergence of such vectors from being negative (TRL leaves it out; between the
    ends it changes nothing). `matched_weight` None: the share of the teacher's vocabulary that is matched;
    `unmatched_weight` None: the rest to 1.

    A chunk of several unlikely tokens has masses below the floor of the divergence (1e-8), where nothing is learnt: a student
    of bytes hardly starts to learn from a teacher of long tokens, for which alm is made.

    With probability `student_share` a step is on texts that the student writes after the data's prompts.
    """

    card = Card(
        "gold",
        summary="Tokens that both vocabularies know are compared directly, the others by size; on the student's own texts too.",
        paper="Hugging Face TRL, General Online Logit Distillation (GOLD), 2025; with ULD, 2024, arXiv 2402.12030",
        use_when="teacher and student have different subword tokenizers with many tokens in common, and prompts are at hand",
        cost="in the share of steps in which the student writes, one pass per written token; one pass of the teacher per text; two sorts per chunk",
        across_tokenizers=True,
    )

    student_share: Scalar = 0.5
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    temperature: Annotated[float, Field(gt=0)] = 1.0
    merge: Literal["bayesian", "observed"] = "bayesian"
    mass: bool = True
    matched_weight: Annotated[float, Field(ge=0)] | None = None
    unmatched_weight: Annotated[float, Field(ge=0)] | None = None
    task_weight: Scalar = 0.0

    def setup(self) -> None:
        super().setup()
        actors = zip((self.student, self.teacher), self.both_tokenizers())
        mine, theirs = (tokens.pieces[: actor.shapes["logits"][-1]] for actor, tokens in actors)
        ours = torch.from_numpy(alignment.exact(theirs, mine))  # for each of the teacher's tokens
        others = torch.from_numpy(alignment.exact(mine, theirs))
        matched = ((ours >= 0) & (others[ours] == torch.arange(len(ours)))).nonzero().squeeze(1)  # one to one
        self.matched = nn.Buffer(torch.stack([ours[matched], matched]), persistent=False)
        for side, (pieces, taken) in enumerate(zip((mine, theirs), self.matched)):
            rest = torch.ones(len(pieces), dtype=torch.bool)
            rest[taken] = False
            self.register_buffer(f"unmatched_{side}", rest.nonzero().squeeze(1), persistent=False)
        self.sizes, share = (len(mine), len(theirs)), len(matched) / len(theirs)
        w = share if self.matched_weight is None else self.matched_weight
        self.weights = w, max(1 - w, 0.0) if self.unmatched_weight is None else self.unmatched_weight
        self.notices.append(f"gold: {share:.0%} of the teacher's {len(theirs):,} tokens are tokens of the student too.")

    def draw(self, batch: Batch) -> Batch:
        if self.coin(0) < self.student_share(self.progress):
            written = self.by_student(batch)
            if "teacher_input_ids" in batch:
                written = retold(batch, written, *self.both_tokenizers(), self.text_prompt)
            batch = written
        group, teacher_group = self.aligned_chunks(batch)
        mine, theirs = self.both_tokenizers()
        ours = _without_ends(group, batch["input_ids"], mine.eos)
        others = _without_ends(teacher_group, self.theirs(batch)["input_ids"], theirs.eos)
        partner = partners(ours, others)
        drawn = {"gold_group": ours, "gold_teacher_group": others, "gold_partner": partner}
        return batch | drawn | {"gold_weight": per_sample(partner >= 0)}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        partner = batch["gold_partner"]
        z, w = (cooled(x, self.temperature) for x in (student["logits"], constant(teacher["logits"])))
        shift = int(self.merge == "observed")
        ours, _ = rows_at(partner, w.shape[1])
        log_q, at_q = self._before(z, batch, batch["gold_group"], self.sizes[0])
        log_p, at_p = self._before(w, self.theirs(batch), batch["gold_teacher_group"], self.sizes[1])
        chunk = batch["gold_group"].flatten()[ours]
        row = ours // partner.shape[1]
        each = log_q[row, chunk], log_p[row, chunk]
        at = row * partner.shape[1] + at_q[row, chunk] + shift, row * w.shape[1] + at_p[row, chunk] + shift
        values = by_rows(self.compared, rows_of(z, at[0]), rows_of(w, at[1]), each=each)
        return Loss.mean("gold", placed(values, ours, partner), batch["gold_weight"])

    def _before(self, logits: Any, own: Batch, group: Group, classes: int) -> tuple[Tensor, Tensor]:
        """Per chunk the log-probability of its other tokens, and the position whose row is taken."""
        chunks, inside = group.shape[1], group >= 0
        places = (first_of_chunks if self.merge == "observed" else last_of_chunks)(group, chunks)
        token = next_tokens(own)
        if self.merge == "observed":  # the row of a token itself, which predicts the one after it
            inside, token = group.roll(1, 1) >= 0, own["input_ids"]
        said = log_probs_of(logits, token, inside, classes)
        said = said.roll(-1, 1) if self.merge == "observed" else said
        taken = places.gather(1, group.clamp(min=0)) == torch.arange(chunks, device=group.device)
        return chunk_sums(torch.where(taken, 0, said), group, chunks), places.clamp(min=0)

    def compared(self, z: Tensor, w: Tensor, before_q: Tensor, before_p: Tensor) -> Tensor:
        """One value per chunk, of rows of logits and what came before them in their chunks."""
        ours, theirs = (getattr(self, f"unmatched_{side}") for side in (0, 1))
        log_q, log_p = (
            probabilities(x[:, :classes], 1.0) + before[:, None]
            for x, classes, before in zip((z, w), self.sizes, (before_q, before_p))
        )
        w_m, w_u = self.weights
        matched = unnormalised_js(log_p[:, self.matched[1]], log_q[:, self.matched[0]], self.beta, mass=self.mass)
        return w_m * matched + w_u * sorted_gap(log_p[:, theirs].exp(), log_q[:, ours].exp())


def cooled(logits: Any, temperature: float) -> Any:
    """Logits divided by T, multiplied out or not."""
    if temperature == 1:
        return logits
    if isinstance(logits, Projection):
        cap = None if logits.softcap is None else logits.softcap / temperature
        return replace(logits, scale=logits.scale / temperature, softcap=cap)
    return logits / temperature


def _without_ends(group: Group, ids: Tensor, eos: tuple[int, ...]) -> Group:
    following = nn.functional.pad(ids, (0, 1), value=-1)[:, 1:]
    return torch.where(torch.isin(following, torch.tensor(list(eos), device=ids.device)), -1, group)
