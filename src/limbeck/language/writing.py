"""What methods share that learn from texts written while they train: who writes, with which seeds, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int32, Int64
from pydantic import Field
from torch import Tensor, nn

from limbeck.actors import Actor, Teacher
from limbeck.data.collate import pick
from limbeck.data.tensors import Split, TensorSplit
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.language.prompts import UNCOUNTED, answers_of, prompt_lengths, with_answers
from limbeck.language.rollouts import Sampler, Vocabulary, context_of
from limbeck.memories import Entries
from limbeck.method import Batch, Transfer, name_of
from limbeck.randomness import fold, seeds_for, uniform
from limbeck.tasks import LANGUAGE


class Writing(Transfer):
    """A transfer whose batches are, now and then, texts that the student or the teacher writes after the data's prompts.

    Subclasses write in `draw`, so that they add up with other transfers, which then read the same texts. Texts of the
    student have no right answer: their column `answer` says what the terms compare, and their `target` is empty, so that
    the task's own loss counts nothing there.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    sampling_temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    text_prompt: Annotated[int, Field(ge=1)] = 16

    def setup(self) -> None:
        super().setup()
        name = name_of(type(self))
        if self.task is None or self.task.name not in LANGUAGE:
            raise RecipeError(
                f"{name} continues prompts, and the task is {self.task.name if self.task else 'not said'}. It needs a language "
                "model and task=chat or task=text."
            )
        if self.student.tokenizer is None:
            raise RecipeError(
                f"{name} lets the student write, and no tokenizer lies beside it, which would say where a text ends. "
                "Say where it is: student.tokenizer=FOLDER"
            )
        if self.teacher is not None and any(member.stored for member in self.teacher.members.values()):
            raise RecipeError(
                f"{name} asks the teacher about texts that are written while training; {self.teacher.source.describe()} holds answers "
                "about the data only. Use method=forward-kl with it, or the teacher itself"
            )

    @property
    def vocabulary(self) -> Vocabulary:
        """The student's tokenizer, in which all texts of a batch are written."""
        assert self.student.tokenizer is not None
        return self.student.tokenizer

    def sampler(self, **changes: Any) -> Sampler:
        """How texts are written: as long as student and teacher can read them."""
        readers = [self.student.model, *(m.model for m in (self.teacher.members if self.teacher else {}).values())]
        contexts = [context for context in map(context_of, readers) if context is not None]
        options = {
            "context": min(contexts, default=None),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.sampling_temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "text_prompt": self.text_prompt,
        }
        return Sampler(**(options | changes))  # type: ignore[arg-type]

    def seeds(self, batch: Batch, salt: int) -> Int64[Tensor, "batch"]:
        """One per row, of this step; salts from 0 on are the student's answers, those below 0 are for other uses."""
        return fold(seeds_for(batch["id"], self.progress.seed, self.progress.step), salt)

    def coin(self, salt: int) -> float:
        """A number in [0, 1) of this step, the same on every process and after a restart."""
        return float(uniform(seeds_for(torch.tensor([salt]), self.progress.seed, self.progress.step)))

    def by_student(self, batch: Batch, *, answers: int = 1, **changes: Any) -> Batch:
        """The batch with answers of the student as it is now, so many for each row; `changes` to the sampler.

        A `teacher_share` lets the teacher speak with it, token by token.
        """
        sampler = self.sampler(**changes)
        other = writer(self.teacher) if sampler.teacher_share > 0 else None
        seeds = torch.stack([self.seeds(batch, number) for number in range(answers)], 1).flatten()
        if answers > 1:
            rows = torch.arange(len(batch["id"]), device=batch["id"].device).repeat_interleave(answers)
            batch = pick(batch, rows)
        found = sampler(self.student.model, self.vocabulary, batch, seeds, teacher=other)
        return found | {"target": torch.full_like(found["target"], UNCOUNTED)}

    def by_teacher(self, batch: Batch, seeds: Int64[Tensor, "batch"], **changes: Any) -> Batch:
        """The batch with answers of the teacher, in the student's tokens; where it has tokens of its own, by their text."""
        model, sampler = writer(self.teacher), self.sampler(**changes)
        if "teacher_input_ids" not in batch:
            found = sampler(model, self.vocabulary, batch, seeds)
            return {name: value for name, value in found.items() if name != "old_log_probs"}
        theirs = self.teacher.tokenizer
        assert theirs is not None
        own = sampler(model, theirs, {**self.teacher.own(batch)}, seeds)
        answers, lengths = answers_of(own, sampler.max_new_tokens, theirs.pad)
        prompt = prompt_lengths(batch, self.text_prompt)
        most = (context_of(self.student.model) or sampler.max_new_tokens + int(prompt.max())) - prompt
        mine = [
            _retold(row[:n], theirs, self.student.tokenizer)[: max(0, min(room, sampler.max_new_tokens))]
            for row, n, room in zip(answers.tolist(), lengths.tolist(), most.tolist())
        ]
        width = max(1, *map(len, mine))
        padded = torch.tensor([ids + [self.vocabulary.pad] * (width - len(ids)) for ids in mine], device=prompt.device)
        length = torch.tensor([len(ids) for ids in mine], device=prompt.device)
        return with_answers(batch, prompt, padded, length, pad=self.vocabulary.pad, pieces=self.vocabulary.pieces)

    def longest(self) -> int:
        """How many tokens a prompt of the training data and what is written after it have at most."""
        most = longest_row(self.data.splits["train"]) + self.max_new_tokens
        return min(most, self.sampler().context or most)


class Answers(nn.Module):
    """One answer per training row, of at most `width` tokens; once written it is not asked for again.

    All processes hold all answers, and so does a checkpoint: 4 * rows * width bytes.
    """

    ids: Int32[Tensor, "rows width"]
    length: Int64[Tensor, "rows"]
    since: Int64[Tensor, "rows"]

    def __init__(self, entries: Entries, width: int):
        super().__init__()
        self.entries, self.width = entries, width
        self.register_buffer("ids", torch.zeros(len(entries), width, dtype=torch.int32))
        self.register_buffer("length", torch.zeros(len(entries), dtype=torch.int64))
        self.register_buffer("since", torch.full((len(entries),), -1))

    def missing(self, batch: Batch, period: int = 0) -> Int64[Tensor, "some"]:
        """The positions in the batch of rows that have no answer of this period or a later one."""
        return (self.since[self.entries(batch["id"])] < period).nonzero().squeeze(1)

    def take(self, batch: Batch, rows: Int64[Tensor, "some"], written: Batch | None, period: int = 0) -> None:
        """Keep the answers of `written`, which are those of these rows of the batch; every process must call it."""
        empty = batch["id"][:0]
        ids, length = (torch.zeros(0, self.width, dtype=torch.int64, device=empty.device), empty)
        if written is not None and not batch.get("ghost"):
            ids, length = answers_of(written, self.width, 0)
        named = {"ids": ids.to(torch.int32), "length": length, "row": batch["id"][rows] if len(length) else empty}
        joined = everywhere(named)
        at = self.entries(joined["row"])
        self.ids[at], self.length[at], self.since[at] = joined["ids"], joined["length"], period

    def put(self, batch: Batch, vocabulary: Vocabulary, text_prompt: int) -> Batch:
        """The batch with these answers in place of its own."""
        at = self.entries(batch["id"])
        return with_answers(
            batch,
            prompt_lengths(batch, text_prompt),
            self.ids[at].long(),
            self.length[at],
            pad=vocabulary.pad,
            pieces=vocabulary.pieces,
        )

    def renew(self, batch: Batch, period: int, write: Callable[[Batch], Batch]) -> None:
        """Let `write(rows of the batch)` answer those that have no answer of this period yet."""
        rows = self.missing(batch, period)
        self.take(batch, rows, write(pick(batch, rows)) if len(rows) else None, period)


def everywhere(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all processes, in order of rank; every process must call it. Trailing dimensions are the same for all."""
    world = here(next(iter(rows.values())).device)
    return {name: world.gather_rows(value)[0] for name, value in rows.items()}


def everywhere_summed(sums: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Sums over the processes."""
    return here(sums.device).sum_(sums.clone())


def here(device: torch.device) -> World:
    """This process among those that train together."""
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return World.here(device.type) if together else World(device=device)


def writer(actor: Actor) -> nn.Module:
    """The network of a teacher that is to write.

    Raises:
        RecipeError: several networks, or none.
    """
    members = list(actor.members.values()) if isinstance(actor, Teacher) else [actor]
    if len(members) > 1:
        raise RecipeError(
            "a mixture of teachers is to write, and only one model can. Give one teacher, or a method that asks them about given texts."
        )
    model = members[0].model
    if not any(True for _ in model.parameters()):
        raise RecipeError(
            f"{type(members[0]).__name__} is to write, and there is no network of it here. Give the teacher itself, or let it write "
            "beforehand and use its texts as data."
        )
    return model


def longest_row(split: Split) -> int:
    """How many tokens the longest row of a language task's split has, without reading the rows where that is known."""
    if isinstance(split, TensorSplit):
        return int(split.tensors["attention_mask"].sum(1).max())
    lengths = getattr(getattr(split, "store", None), "lengths", None)
    if lengths is not None:
        return int(max(lengths("ids")))
    return max(split.__getitems__([i])["input_ids"].shape[1] for i in range(len(split)))


def _retold(ids: Sequence[int], theirs: Any, mine: Any) -> list[int]:
    """The tokens of one tokenizer's answer in another's, with an end where there was one."""
    ended = bool(ids) and ids[-1] in theirs.eos
    text = theirs.decode(ids[:-1] if ended else ids)
    return [*(mine.continuing(text).ids if text else []), *(mine.eos[:1] if ended else ())]
