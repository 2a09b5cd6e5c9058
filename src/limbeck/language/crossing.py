"""What methods share that compare language models with different tokenizers: chunks of a batch, and retold answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.language.alignment import groups
from limbeck.language.pieces import spans
from limbeck.language.prompts import answers_of, prompt_lengths, with_answers
from limbeck.language.tokens import Tokens
from limbeck.losses.across_tokenizers import first_of_chunks, last_of_chunks
from limbeck.method import Batch, Transfer, name_of
from limbeck.objectives import Objective
from limbeck.signals import Projection
from limbeck.tasks import LANGUAGE

Group = Int64[Tensor, "batch tokens"]


class Crossing(Transfer):
    """A transfer between language models of which each reads the text in tokens of its own, or both in the same ones.

    What is compared with what is settled in `draw`, once for the whole batch; it lies in columns that begin with the
    method's name, so that terms are counted from the batch alone.
    """

    def setup(self) -> None:
        self.terms = Objective()
        name = name_of(type(self))
        if self.task is None or self.task.name not in LANGUAGE:
            raise RecipeError(
                f"{name} compares language models, and the task is {self.task.name if self.task else 'not said'}. It needs "
                "task=chat or task=text."
            )
        if self.teacher is None:
            raise RecipeError(f"{name} compares student and teacher, and there is no teacher. Give teacher=...")
        for actor in (self.student, self.teacher):
            if "logits" not in actor.shapes:
                raise RecipeError(f"{name} reads 'logits': {actor.lacks('logits')}")

    def teacher_reads(self) -> set[str]:
        return {"logits"}

    def theirs(self, batch: Batch) -> Batch:
        """The batch as the teacher means it: its own tokens under the plain names."""
        return dict(self.teacher.own(batch))

    def aligned_chunks(self, batch: Batch) -> tuple[Group, Group]:
        """The columns `group` and `teacher_group`; with one tokenizer for both every counted token is a chunk.

        Raises:
            RecipeError: the teacher has tokens of its own, and nobody said which are which.
        """
        if "group" in batch:
            return batch["group"], batch["teacher_group"]
        if "teacher_input_ids" in batch:
            raise RecipeError(
                f"{name_of(type(self))} compares chunks of text, and the data have tokens of the teacher's own without the columns group and "
                "teacher_group, which say which of them spell the same. Data of task=chat or task=text have them."
            )
        number = numbered(batch["answer"])
        return number, number

    def both_tokenizers(self) -> tuple[Tokens, Tokens]:
        """The student's and the teacher's.

        Raises:
            RecipeError: one of them is not known.
        """
        for actor in (self.student, self.teacher):
            if actor.tokenizer is None:
                raise RecipeError(
                    f"{name_of(type(self))} reads what tokens spell, and no tokenizer lies beside the {actor.whose}. Say where it "
                    f"is: {actor.whose}.tokenizer=FOLDER"
                )
        assert self.student.tokenizer is not None
        assert self.teacher.tokenizer is not None
        return self.student.tokenizer, self.teacher.tokenizer


def constant(logits: Any) -> Any:
    """A teacher's logits without a graph: the head of a projection is a parameter of its own, beside the hidden states."""
    if isinstance(logits, Projection):
        bias = None if logits.bias is None else logits.bias.detach()
        return replace(logits, hidden=logits.hidden.detach(), weight=logits.weight.detach(), bias=bias)
    return logits.detach() if isinstance(logits, Tensor) else logits


def numbered(answer: Bool[Tensor, "batch tokens"]) -> Group:
    """The counted positions of each row, numbered from 0; -1 for the others."""
    return torch.where(answer, answer.cumsum(1) - 1, -1)


def partners(group: Group, teacher_group: Group, *, first: bool = False) -> Group:
    """At the position of the last (or first) token of a chunk: the teacher's position of that token's counterpart.

    -1 everywhere else, also for chunks that only one side has.
    """
    places = first_of_chunks if first else last_of_chunks
    chunks = group.shape[1]  # no row has more chunks than tokens
    ours, theirs = places(group, chunks), places(teacher_group, chunks)
    found = torch.full((len(group), chunks + 1), -1, device=group.device)
    here = (ours >= 0) & (theirs >= 0)
    found.scatter_(1, torch.where(here, ours, chunks), torch.where(here, theirs, -1))
    return found[:, :chunks]


def per_sample(counts: Bool[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens"]:
    """Weights by which a mean over all becomes the mean over samples of each sample's own mean."""
    return counts.float() / counts.sum(1, keepdim=True).clamp(min=1)


def rows_at(partner: Group, teacher_tokens: int) -> tuple[Int64[Tensor, "rows"], Int64[Tensor, "rows"]]:
    """The positions with a partner and their partners, counted through over the whole batch."""
    ours = (partner >= 0).flatten().nonzero().squeeze(1)
    return ours, ours // partner.shape[1] * teacher_tokens + partner.flatten()[ours]


def placed(values: Float[Tensor, "rows"], at: Int64[Tensor, "rows"], like: Group) -> Float[Tensor, "batch tokens"]:
    """Values of rows at their positions, 0 elsewhere."""
    return values.new_zeros(like.numel()).index_put((at,), values).view(like.shape)


def retold(batch: Mapping[str, Any], written: Batch, mine: Tokens, theirs: Tokens, text_prompt: int = 1) -> Batch:
    """A batch in which the student wrote new answers, with the same answers in the teacher's tokens and the chunks of both.

    Args:
        batch: as it was before, with the teacher's prompts in `teacher_input_ids`.
        written: with the student's new answers; it has no columns of the teacher any more.
        text_prompt: as the answers were written with: how many of the teacher's tokens of plain text are the prompt.
    """
    own = {name.removeprefix("teacher_"): value for name, value in batch.items() if name.startswith("teacher_")}
    device = written["input_ids"].device
    size = written["input_ids"].shape[1]
    answers, lengths = answers_of(written, size, mine.pad)
    rows: list[tuple[list[int], np.ndarray, np.ndarray]] = []
    for ids, length in zip(answers.tolist(), lengths.tolist(), strict=True):
        rows.append(_one(ids[:length], mine, theirs))
    count = torch.tensor([len(ids) for ids, _, _ in rows], device=device)
    width = max(1, int(count.max()))
    padded = torch.tensor([ids + [theirs.pad] * (width - len(ids)) for ids, _, _ in rows], device=device)
    told = with_answers(own, prompt_lengths(own, text_prompt), padded, count, pad=theirs.pad, pieces=theirs.pieces)
    columns = {f"teacher_{name}": told[name] for name in ("input_ids", "attention_mask", "target", "answer")}
    columns["group"] = _at_answers(written["answer"], [group for _, group, _ in rows])
    columns["teacher_group"] = _at_answers(told["answer"], [group for _, _, group in rows])
    return {**written, **columns}


def _one(ids: list[int], mine: Tokens, theirs: Tokens) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The teacher's tokens of an answer, and the chunks of both sides; the ends are a chunk of their own."""
    ended = bool(ids) and ids[-1] in mine.eos
    said = ids[:-1] if ended else ids
    text = mine.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    told = theirs.continuing(text).ids if text else []
    try:
        ours, others = groups(spans(mine.tokenizer, said, text), spans(theirs.tokenizer, told, text))
    except RecipeError:  # sampled tokens of a tokenizer that changes texts: nothing is known of where they are
        ours, others = np.full(len(said), -1), np.full(len(told), -1)
    if ended and theirs.eos:
        whole = len(ours) > 0 and bool((ours >= 0).all() and (others >= 0).all())
        last = int(ours.max(initial=-1)) + 1 if whole or not said else -1
        ours, others, told = np.append(ours, last), np.append(others, last), [*told, theirs.eos[0]]
    elif ended:
        ours = np.append(ours, -1)
    return told, ours, others


def _at_answers(answer: Bool[Tensor, "batch tokens"], rows: list[np.ndarray]) -> Group:
    """Numbers of each row's answer tokens at the positions that predict them."""
    found = torch.full(answer.shape, -1, dtype=torch.int64, device=answer.device)
    for place, here, numbers in zip(found, answer, rows, strict=True):
        at = here.nonzero().squeeze(1)
        place[at] = torch.from_numpy(np.asarray(numbers, np.int64)[: len(at)]).to(answer.device)
    return found
