"""Rollouts: a model continues the prompts of a batch, and the batch then holds what it wrote.

Every row draws from a seed of its own, so what it is given does not depend on its neighbours, on the number of processes
or on any generator; only the rounding of the logits does (a matrix product of other rows rounds otherwise), and that
moves a draw only where it lies as close to an edge. Models of transformers continue through their `generate`, with its
cache of keys and values; any other module that gives logits [batch, tokens, vocabulary] is called on the whole text for
every token.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.language.drawing import distribution, draw, mixed
from limbeck.language.prompts import ends, left_padded, prompt_lengths, with_answers, written_lengths
from limbeck.precision import in_precision
from limbeck.randomness import fold, seeds_for
from limbeck.schedules import Fraction
from limbeck.signals import Projection, select

Batch = dict[str, Any]
Ids = Int64[Tensor, "batch tokens"]
Written = tuple[Ids, Float[Tensor, "batch tokens"] | None]
"""Tokens, and the log-probability of each under what it was drawn from (None: not known)."""


class Vocabulary(Protocol):
    """What is read of a tokenizer (`limbeck.language.tokens.Tokens`): ends, padding, the bytes of every token, how many."""

    @property
    def eos(self) -> Sequence[int]: ...
    @property
    def pad(self) -> int: ...
    @property
    def pieces(self) -> Sequence[bytes]: ...
    @property
    def size(self) -> int: ...


@runtime_checkable
class Writer(Protocol):
    """Something else that continues texts: see `limbeck.language.served`."""

    def continued(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampler: Sampler, vocabulary: Vocabulary
    ) -> list[tuple[list[int], list[float] | None]]: ...


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Sampler:
    """How texts are continued. Called as `sampler(model, vocabulary, batch, seeds)`; gives the batch with the new texts.

    Attributes:
        max_new_tokens: how many tokens at most; fewer where the model's context ends.
        temperature: of the softmax; 0 takes the most probable token.
        top_p, top_k: see `limbeck.language.drawing.distribution`.
        beams: more than 1: beam search in place of draws (transformers only); log-probabilities are then not known.
        teacher_share: a in (1 - a) student + a teacher, the distribution that each token is drawn from.
        text_prompt: how many tokens of a plain text, which has no prompt of its own, are taken for one.
        context: how many tokens the model can read; None: what its configuration says.
    """

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    beams: Annotated[int, Field(ge=1)] = 1
    teacher_share: Fraction = 0.0
    text_prompt: Annotated[int, Field(ge=1)] = 16
    context: Annotated[int, Field(ge=2)] | None = None

    @torch.no_grad()
    def __call__(
        self,
        model: nn.Module | Writer,
        vocabulary: Vocabulary,
        batch: Mapping[str, Any],
        seeds: Int64[Tensor, "batch"],
        *,
        teacher: nn.Module | None = None,
    ) -> Batch:
        """Continue the prompts of `batch`: the tokens before the last run of counted targets.

        Args:
            model: a model of transformers, any module that gives logits, or a server.
            vocabulary: the tokenizer's; tokens beyond its size, padding of the head, are never drawn.
            batch: with the columns `input_ids`, `attention_mask` and `target` (see `limbeck.language.prompts`).
            seeds: one per row.
            teacher: the other part of the mixture.

        Returns:
            The batch with `input_ids`, `attention_mask`, `target`, `answer`, `answer_bytes` of prompts and what was
            written, padded on the right; all after the first end of text is cut off, the end itself is kept and counted.
            `old_log_probs` float32 [batch, tokens], in line with `target`: the log-probability of each counted target under
            the distribution it was drawn from (0 elsewhere), temperature, restriction and mixture included.

        Raises:
            RecipeError: a prompt as long as the context, or a row without a token.
        """
        prompt = prompt_lengths(batch, self.text_prompt)
        room = self._room(model, batch, prompt)
        ids = batch["input_ids"]
        if isinstance(model, Writer):
            written, log_probs = self._served(model, vocabulary, ids, prompt, room, seeds)
        else:
            written, log_probs = self._in_groups(model, teacher, vocabulary, ids, prompt, room, seeds)
        length = torch.minimum(written_lengths(written, vocabulary.eos), room)
        if isinstance(model, Writer):
            length = torch.minimum(length, (written >= 0).sum(1))  # a server may give fewer
        return with_answers(
            batch, prompt, written, length, pad=vocabulary.pad, pieces=vocabulary.pieces, log_probs=log_probs
        )

    def choose(
        self,
        logits: Float[Tensor, "batch vocabulary"],
        seeds: Int64[Tensor, "batch"],
        size: int,
        other: Float[Tensor, "batch vocabulary"] | None = None,
    ) -> tuple[Int64[Tensor, "batch"], Float[Tensor, "batch"]]:
        """One token per row of the first `size`, and its log-probability. `other`: logits of the mixture's second part."""
        how = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        log_p = distribution(logits[:, :size], **how)  # type: ignore[arg-type]
        if other is not None:
            log_p = mixed(log_p, distribution(other[:, :size], **how), self.teacher_share)  # type: ignore[arg-type]
        chosen = draw(log_p, seeds)
        return chosen, log_p.gather(-1, chosen[:, None]).squeeze(-1).float()

    def _room(self, model: Any, batch: Mapping[str, Any], prompt: Int64[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
        context = self.context or context_of(model)
        if context is None:
            return torch.full_like(prompt, self.max_new_tokens)
        longest = int(prompt.max())
        if longest >= context:
            row = int(batch["id"][prompt.argmax()]) if "id" in batch else int(prompt.argmax())
            raise RecipeError(
                f"the prompt of row {row} has {longest} tokens, and the model reads {context}: there is no room for an answer. "
                "Leave such rows out, or cut their prompts."
            )
        return (context - prompt).clamp(max=self.max_new_tokens)

    def _in_groups(
        self,
        model: nn.Module,
        teacher: nn.Module | None,
        vocabulary: Vocabulary,
        ids: Ids,
        prompt: Int64[Tensor, "batch"],
        room: Int64[Tensor, "batch"],
        seeds: Int64[Tensor, "batch"],
    ) -> Written:
        """Rows that have the same room are continued together: one that is near the end of the context shortens no other.

        Layers that are spread over processes run in step, so there all rows stop where the first has to.
        """
        spread = any(hasattr(p, "device_mesh") for p in model.parameters())
        if spread:
            room.clamp_(max=int(room.min()))
        written = torch.full((len(ids), int(room.max())), vocabulary.pad, device=ids.device)
        log_probs = torch.zeros(written.shape, device=ids.device)
        with undisturbed(model, teacher), in_precision():
            for steps in room.unique().tolist():
                rows = (room == steps).nonzero().squeeze(1)
                texts, mask = left_padded(ids[rows], prompt[rows], vocabulary.pad)
                other = Reader(teacher) if teacher is not None and self.teacher_share > 0 else None
                continuing = _Continuing(self, vocabulary, seeds[rows], texts.shape[1], mask, other)
                new = (
                    continuing.by_generate(model, texts, steps, spread)
                    if hasattr(model, "generate")
                    else continuing.by_reading(Reader(model), texts, steps)
                )
                written[rows, : new.shape[1]] = new
                if continuing.log_probs:
                    found = torch.stack(continuing.log_probs, 1)[:, : new.shape[1]]
                    log_probs[rows, : found.shape[1]] = found
        return written, None if self.beams > 1 else log_probs

    def _served(
        self,
        server: Writer,
        vocabulary: Vocabulary,
        ids: Ids,
        prompt: Int64[Tensor, "batch"],
        room: Int64[Tensor, "batch"],
        seeds: Int64[Tensor, "batch"],
    ) -> Written:
        prompts = [row[:n] for row, n in zip(ids.tolist(), prompt.tolist())]
        answers = server.continued(prompts, seeds.tolist(), self, vocabulary)
        width = max(1, *(len(tokens) for tokens, _ in answers))
        written = torch.tensor([tokens + [-1] * (width - len(tokens)) for tokens, _ in answers], device=ids.device)
        if any(found is None for _, found in answers):
            return written, None
        rows = [[*(found or ()), *[0.0] * (width - len(tokens))] for tokens, found in answers]
        return written, torch.tensor(rows, device=ids.device)


def sample(
    model: nn.Module | Writer,
    vocabulary: Vocabulary,
    batch: Mapping[str, Any],
    *,
    seed: int = 0,
    step: int = 0,
    teacher: nn.Module | None = None,
    **options: Any,
) -> Batch:
    """`Sampler(**options)` on the prompts of a batch, with seeds out of a number, a step and the rows' ids."""
    return Sampler(**options)(model, vocabulary, batch, seeds_for(batch["id"], seed, step), teacher=teacher)


class Reader:
    """What a module says about the token after texts that grow; what it read before it keeps, where it can."""

    def __init__(self, model: nn.Module):
        self.model, self.kept, self.read = model, None, 0
        self.takes = set(inspect.signature(model.forward).parameters)
        self.keeps = hasattr(model, "generate") and {"past_key_values", "use_cache"} <= self.takes

    def __call__(self, ids: Ids, mask: Ids) -> Float[Tensor, "batch vocabulary"]:
        """Logits after the last of `ids`, which are padded on the left and begin with those of the call before."""
        return self._with_the_new(ids, mask) if self.keeps else self._with_all(ids, mask)

    def _with_the_new(self, ids: Ids, mask: Ids) -> Float[Tensor, "batch vocabulary"]:
        new = ids[:, self.read :]
        options: dict[str, Any] = {"past_key_values": self.kept, "use_cache": True, "attention_mask": mask}
        if "position_ids" in self.takes:
            options["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, self.read :]
        if "logits_to_keep" in self.takes:
            options["logits_to_keep"] = 1
        said = self.model(input_ids=new, **options)
        self.kept, self.read = said.past_key_values, ids.shape[1]
        return said.logits[:, -1]

    def _with_all(self, ids: Ids, mask: Ids) -> Float[Tensor, "batch vocabulary"]:
        """The texts begin at the left: what follows them is not seen by a model that reads from left to right."""
        width = ids.shape[1]
        length = mask.sum(1)
        at = (torch.arange(width, device=ids.device) + (width - length)[:, None]) % width
        ids, mask = ids.gather(1, at), mask.gather(1, at)
        said = self.model(ids, attention_mask=mask) if "attention_mask" in self.takes else self.model(ids)
        logits = said if isinstance(said, (Tensor, Projection)) else select(said, ["logits"])
        rows = torch.arange(len(ids), device=ids.device)
        if isinstance(logits, Projection):
            last = logits.hidden[rows, length - 1]
            return Projection(last, logits.weight, logits.bias, logits.scale, logits.softcap).materialise()
        return logits[rows, length - 1]


class _Continuing:
    """One group of prompts on its way: chooses tokens, remembers their log-probabilities."""

    def __init__(
        self,
        sampler: Sampler,
        vocabulary: Vocabulary,
        seeds: Int64[Tensor, "batch"],
        begin: int,
        mask: Ids,
        other: Reader | None,
    ):
        self.sampler, self.vocabulary, self.seeds, self.begin = sampler, vocabulary, seeds, begin
        self.mask, self.other = mask, other
        self.log_probs: list[Float[Tensor, "batch"]] = []

    def choose(self, ids: Ids, logits: Float[Tensor, "batch vocabulary"]) -> Int64[Tensor, "batch"]:
        seeds, mask = fold(self.seeds, ids.shape[1] - self.begin), self._mask(ids)
        other = self.other(ids, mask) if self.other is not None else None
        chosen, log_p = self.sampler.choose(logits, seeds, self.vocabulary.size, other)
        self.log_probs.append(log_p)
        return chosen

    def by_generate(self, model: Any, ids: Ids, steps: int, spread: bool) -> Ids:
        """Through `generate` of transformers. Its own settings are set aside: they would draw from another distribution."""
        from transformers import GenerationConfig

        def only_the_chosen(ids: Ids, scores: Float[Tensor, "batch vocabulary"]) -> Float[Tensor, "batch vocabulary"]:
            return torch.full_like(scores, -math.inf).scatter(1, self.choose(ids, scores)[:, None], 0.0)

        beams = self.sampler.beams
        settings = GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,
            num_beams=beams,
            use_cache=True,
            eos_token_id=list(self.vocabulary.eos) or None,
            pad_token_id=self.vocabulary.pad,
        )
        with plainly(model):
            texts = model.generate(
                ids,
                attention_mask=self._mask(ids),
                generation_config=settings,
                logits_processor=[only_the_chosen] if beams == 1 else [self._no_padding],
                **({"synced_gpus": True} if spread and _several() else {}),
            )
        return texts[:, ids.shape[1] :]

    def by_reading(self, reader: Reader, ids: Ids, steps: int) -> Ids:
        """Token by token, for modules that have no `generate`."""
        if self.sampler.beams > 1:
            raise RecipeError(
                f"beams={self.sampler.beams}: beam search is there for models of transformers; a "
                f"{type(reader.model).__name__} is drawn from. Set beams=1."
            )
        done = torch.zeros_like(ids[:, 0], dtype=torch.bool)
        for _ in range(steps):
            chosen = self.choose(ids, reader(ids, self._mask(ids))).where(~done, self.vocabulary.pad)
            ids = torch.cat([ids, chosen[:, None]], 1)
            done |= ends(chosen, self.vocabulary.eos)
            if bool(done.all()):
                break
        return ids[:, self.begin :]

    def _no_padding(self, ids: Ids, scores: Float[Tensor, "beams vocabulary"]) -> Float[Tensor, "beams vocabulary"]:
        at = torch.arange(scores.shape[1], device=scores.device)
        return scores.masked_fill(at >= self.vocabulary.size, -math.inf)

    def _mask(self, ids: Ids) -> Ids:
        return torch.nn.functional.pad(self.mask, (0, ids.shape[1] - self.begin), value=1)


def context_of(model: Any) -> int | None:
    """How many tokens a model can read, as its configuration says it."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(found := getattr(config, name, None), int):
            return found
    return None


@contextmanager
def undisturbed(*models: nn.Module | None) -> Iterator[None]:
    """Eval mode for a while; afterwards every module is in its own mode and every generator in its own state."""
    there = [model for model in models if model is not None]
    modes = [(module, module.training) for model in there for module in model.modules()]
    devices = {p.device for model in there for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            for model in there:
                model.eval()
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """A model of transformers without the settings it was published with (top_p, repetition penalty, forced tokens)."""
    from transformers import GenerationConfig

    own = [
        (module, vars(module)["generation_config"]) for module in model.modules() if "generation_config" in vars(module)
    ]
    try:
        for module, _ in own:
            vars(module)["generation_config"] = GenerationConfig()
        yield
    finally:
        for module, settings in own:
            vars(module)["generation_config"] = settings


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
