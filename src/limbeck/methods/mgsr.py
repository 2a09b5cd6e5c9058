"""MGSR: the student's texts corrected where they go most wrong, tokens in a learnt window, spans (2024, arXiv 2407.10068)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.language.likelihood import next_tokens, values_of
from limbeck.language.prompts import UNCOUNTED, columns_of, ends, prompt_lengths, renewed
from limbeck.language.rollouts import undisturbed
from limbeck.language.writing import Writing
from limbeck.losses import kl, reverse_kl
from limbeck.losses.across_tokenizers import by_rows, rows_of
from limbeck.losses.linear.choosing import most_probable
from limbeck.losses.windows import neighbours_apart, neighbours_in_spans, windowed_kl
from limbeck.method import Batch, Card
from limbeck.objectives import Loss, Objective, Term
from limbeck.schedules import Fraction, Scalar
from limbeck.signals import Projection, Signals

_EDGE = 1e-4  # how near to 0 and 1 learnt bounds may come


class MGSR(Writing):
    """task_weight * CE + kl_weight * DAC-KL + span_weight * span loss; in a `student_share` of the steps on revised texts.

    - Sequence. The student writes; of the tokens that are not the teacher's most probable one, the one at which the two are
      furthest apart (KL(p || q), or `worst_by=reverse-kl`) is replaced by the teacher's, and the student writes on from
      there, `corrections` times. A text without such a token stays. Revised texts have no right answer, so no CE.
    - Tokens. KL over a window of the teacher's cumulative distribution (`limbeck.losses.windows.windowed_kl`); the token
      that stands there is always kept (`keep_label`). A network of one hidden layer reads the log-probabilities of the
      teacher's `reads` most probable classes on both sides (constants) and says both bounds; it learns from the same loss
      and is thrown away. Alone it would close the window, so `floor` of the mass is always kept. `window=[0, 1]` is fixed
      and forward KL. A mean over answer tokens.
    - Spans. |p_i * p_{i+1} - q_i * q_{i+1}| for neighbours in runs of `span` answer tokens, a mean over such pairs;
      `span_top` looks at the most probable classes of either side only.

    No code was published. Ours, where public accounts are silent: how the network sees and says the window, the soft edge,
    the floor and the bucket for what is clipped (`clipped=drop` leaves that out), spans of fixed length where the paper
    has a chunker's phrases, their distance, the direction of the KL that finds the worst token, and the `student_share`.
    """

    card = Card(
        "mgsr",
        summary="The student's own texts, corrected at their worst token; a learnt window of classes; neighbours alike. Partly a reconstruction.",
        paper="Multi-Granularity Semantic Revision for Large Language Model Distillation, 2024, arXiv 2407.10068 (no published code)",
        use_when="on-policy, and the student's texts go wrong early and never return",
        cost="as on-policy with a second writing and one more pass of both; three products with the vocabulary per token, each made twice",
    )

    student_share: Scalar = 0.5
    corrections: Annotated[int, Field(ge=0)] = 1
    worst_by: Literal["forward-kl", "reverse-kl"] = "forward-kl"
    kl_weight: Scalar = 1.0
    window: tuple[Fraction, Fraction] | None = None
    reads: Annotated[int, Field(ge=1)] = 32
    hidden: Annotated[int, Field(ge=1)] = 64
    start: Annotated[float, Field(gt=0, lt=0.5)] = 0.02
    softness: Annotated[float, Field(gt=0)] = 0.25
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.5
    keep_label: bool = True
    clipped: Literal["bucket", "drop"] = "bucket"
    span: Annotated[int, Field(ge=1)] = 3
    span_top: Annotated[int, Field(ge=1)] | None = None
    span_distance: Literal["l2", "l1"] = "l2"
    span_weight: Scalar = 1.0
    task_weight: Scalar = 1.0

    def objective(self) -> Objective:
        return Objective(Term(kl, name="dac-kl"))  # settles classes, mask and tokenizers as for any logits

    def setup(self) -> None:
        super().setup()
        if self.teacher.sketches:
            raise RecipeError(
                "mgsr looks for a window in the teacher's whole distribution, and of this teacher some classes are known only. "
                "Take the teacher itself, or method=forward-kl"
            )
        if self.window is not None and self.window[0] >= self.window[1]:
            raise RecipeError(
                f"mgsr.window={list(self.window)}: needed are two numbers from 0 to 1, the smaller first."
            )
        self.classes = self.terms.classes or self.student.shapes["logits"][-1]
        self.bounds = None
        if self.window is None:
            self.reads = min(self.reads, self.classes)
            said = nn.Linear(self.hidden, 2)
            nn.init.zeros_(said.weight)
            edge = math.log((1 - self.start) / self.start)
            said.bias.data = torch.tensor([-edge, edge])
            self.bounds = nn.Sequential(nn.Linear(2 * self.reads, self.hidden), nn.Tanh(), said)

    def draw(self, batch: Batch) -> Batch:
        if self.coin(0) >= self.student_share(self.progress):
            return batch
        prompt, written = prompt_lengths(batch, self.text_prompt), self.by_student(batch)
        for number in range(self.corrections):
            written = self.revised(written, prompt, self.seeds(batch, number + 1))
        return written

    @torch.no_grad()
    def revised(self, written: Batch, prompt: Int64[Tensor, "batch"], seeds: Int64[Tensor, "batch"]) -> Batch:
        """Texts up to their worst token, the teacher's in its place, and what the student writes after it."""
        at, token = self.worst(written)
        wrong, sampler, vocabulary = at >= 0, self.sampler(), self.vocabulary
        end = prompt + self.max_new_tokens
        end = end if sampler.context is None else end.clamp(max=sampler.context)
        ids = written["input_ids"].clone()
        ids[wrong, at[wrong] + 1] = token[wrong]
        open_ended = wrong & (at + 2 < end) & ~ends(token, vocabulary.eos)
        begin = torch.where(open_ended, at + 2, prompt)  # the others write too, for nothing: layers may be spread
        shown = renewed(written, columns_of(ids, begin, begin, pad=vocabulary.pad))
        most = max(1, int(torch.where(open_ended, end - begin, 1).max()))
        found = self.sampler(max_new_tokens=most)(self.student.model, vocabulary, shown, seeds)
        whole = torch.where(wrong, at + 2, written["attention_mask"].sum(1))
        length = torch.where(open_ended, torch.minimum(found["attention_mask"].sum(1), end), whole)
        width = max(ids.shape[1], found["input_ids"].shape[1])
        new, old = (
            nn.functional.pad(x, (0, width - x.shape[1]), value=vocabulary.pad) for x in (found["input_ids"], ids)
        )
        text = torch.where(open_ended[:, None], new, old)
        columns = columns_of(text, prompt, length, pad=vocabulary.pad, pieces=vocabulary.pieces)
        return renewed(written, columns | {"target": torch.full_like(columns["target"], UNCOUNTED)})

    def worst(self, written: Batch) -> tuple[Int64[Tensor, "batch"], Int64[Tensor, "batch"]]:
        """The position before each text's worst token (-1: none is wrong), and the teacher's most probable token there."""
        answer = written["answer"]
        with undisturbed(self.student.model):
            ours, theirs = (first(actor(written)["logits"], self.classes) for actor in (self.student, self.teacher))
        best = most_probable(first(theirs, self.vocabulary.size), answer)
        wrong = answer & (best != next_tokens(written))
        apart = values_of(kl if self.worst_by == "forward-kl" else reverse_kl, ours, theirs, wrong)
        at = torch.where(wrong, apart, -1.0).argmax(1)
        return torch.where(wrong.any(1), at, -1), best.gather(1, at[:, None]).squeeze(1)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        answer, sides = batch["answer"], [first(each["logits"], self.classes) for each in (student, teacher)]
        at = answer.flatten().nonzero().squeeze(1)
        values = by_rows(self.divergence, *(rows_of(x, at) for x in sides), each=(next_tokens(batch).flatten()[at],))
        pairs = neighbours_in_spans(answer, self.span)
        at = pairs.flatten().nonzero().squeeze(1)
        apart = by_rows(self.neighbours, *(rows_of(x, here) for x in sides for here in (at, at + 1)))
        return self.kl_weight(self.progress) * Loss.mean("dac-kl", in_place(values, answer), answer) + self.span_weight(
            self.progress
        ) * Loss.mean("span", in_place(apart, pairs), pairs)

    def divergence(self, student: Tensor, teacher: Tensor, label: Int64[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        """DAC-KL of some tokens."""
        low, high = self.bounds_of(student.detach(), teacher.detach())
        how: dict[str, Any] = {"softness": self.softness, "floor": self.floor, "clipped": self.clipped}
        return windowed_kl(student, teacher, low, high, label=label if self.keep_label else None, **how)

    def neighbours(self, *sides: Tensor) -> Float[Tensor, "rows"]:
        """The span loss of some pairs of tokens."""
        return neighbours_apart(*sides, top=self.span_top, distance=self.span_distance)

    def bounds_of(self, student: Tensor, teacher: Tensor) -> tuple[Float[Tensor, "rows"], Float[Tensor, "rows"]]:
        """Where each token's window begins and ends."""
        if self.bounds is None:
            assert self.window is not None
            low, high = (student.new_full(student.shape[:1], bound) for bound in self.window)
            return low, high
        log_p, ids = teacher.log_softmax(-1).topk(self.reads, -1)
        heard = torch.cat([log_p, student.log_softmax(-1).gather(-1, ids)], -1).clamp(min=-30)
        low, width = self.bounds(heard.to(next(self.bounds.parameters()).dtype)).float().sigmoid().unbind(-1)
        low = _EDGE + (1 - 2 * _EDGE) * low
        return low, low + (1 - _EDGE - low) * width


def first(logits: Tensor | Projection, classes: int) -> Any:
    """Logits of the first so many classes alone."""
    if isinstance(logits, Tensor) or classes >= logits.shape[-1]:
        return logits[..., :classes] if isinstance(logits, Tensor) else logits
    bias = None if logits.bias is None else logits.bias[:classes]
    return replace(logits, weight=logits.weight[:classes], bias=bias)


def in_place(values: Float[Tensor, "counted"], mask: Tensor) -> Float[Tensor, "batch tokens"]:
    """Values of counted tokens where these stand, 0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
