"""Speculative decoding: how often the teacher keeps what the student proposes, and how much faster it writes with it.

The student is the draft (q), the teacher the target (p). The draft proposes gamma tokens; the target reads them all at once,
keeps x with probability min(1, p(x) / q(x)), and at the first refusal draws from max(p - q, 0) made to sum to 1, or, where all
are kept, one more token from p. What is written is distributed exactly as if the target had written it alone. Source:
Leviathan, Kalman, Matias 2023, arXiv 2211.17192, algorithm 1, theorem 3.5, equation 1.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.actors import Actor, Teacher
from limbeck.data.collate import pick
from limbeck.engine.processes import World
from limbeck.engine.validate import Batches
from limbeck.language.drawing import distribution, draw
from limbeck.language.likelihood import rows_of, values_of
from limbeck.language.prompts import ends, prompt_lengths
from limbeck.language.rollouts import context_of, plainly, undisturbed
from limbeck.losses.linear.choosing import most_probable
from limbeck.losses.token_divergences import tvd
from limbeck.randomness import fold, seeds_for, uniform
from limbeck.signals import Projection
from limbeck.tasks import LANGUAGE

if TYPE_CHECKING:
    from limbeck.language.tokens import Tokens

GAMMA = 4
PROMPTS = 16
NEW = 40
TEXT_PROMPT = 16


@dataclass
class Decoded:
    """What came of decoding: texts, and per whole block (gamma proposals, none of them the end) how many were kept.

    `accepted` is the share of the proposals that were looked at which were kept (those after a refusal are not looked
    at), `block_efficiency` the mean number of tokens per call of the target, in [1, gamma + 1]; nan where no block was whole.
    """

    gamma: int
    texts: list[list[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    @property
    def accepted(self) -> float:
        looked_at = sum(min(n + 1, self.gamma) for n in self.kept)
        return sum(self.kept) / looked_at if looked_at else math.nan

    @property
    def block_efficiency(self) -> float:
        return statistics.fmean(n + 1 for n in self.kept) if self.kept else math.nan


def expected_block(acceptance: float, gamma: int) -> float:
    """Tokens per call of the target, were every proposal kept with this probability: (1 - a^(gamma + 1)) / (1 - a)."""
    return float(sum(acceptance**i for i in range(gamma + 1)))


def verified(
    p: Float[Tensor, "batch gamma_and_one vocabulary"],
    q: Float[Tensor, "batch gamma vocabulary"],
    proposed: Int64[Tensor, "batch gamma"],
    seeds: Int64[Tensor, "batch"],
) -> tuple[Int64[Tensor, "batch"], Int64[Tensor, "batch"]]:
    """How many of the proposals of each row are kept, from the first on, and the token that follows them.

    Args:
        p: the target's probabilities at every proposal and after the last.
        q: the draft's, which the proposals were drawn from.
        seeds: one per row, not those of the proposals.
    """
    at = proposed.unsqueeze(-1)
    p_of, q_of = p[:, :-1].gather(-1, at).squeeze(-1), q.gather(-1, at).squeeze(-1)
    keeps = uniform(fold(seeds, 0), proposed.shape[1]) * q_of < p_of
    kept = keeps.long().cumprod(1).sum(1)
    rows = torch.arange(len(p), device=p.device)
    there = p[rows, kept]
    nothing = torch.nn.functional.pad(q, (0, 0, 0, 1))  # after the last proposal there is no draft to take off
    rest = (there - nothing[rows, kept]).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, there)  # p = q up to rounding: nothing was refused in truth
    return kept, draw((rest / rest.sum(1, keepdim=True)).log(), fold(seeds, 1))


@torch.no_grad()
def decoded(
    draft: Actor,
    target: Actor,
    prompts: list[list[int]],
    seeds: Int64[Tensor, "prompts"],
    *,
    gamma: int = GAMMA,
    tokens: int = NEW,
    temperature: float = 1.0,
) -> Decoded:
    """The loop itself, for any two networks of the same tokens; whole texts are read again for every token.

    Every row goes at its own pace, to its end or to so many new tokens. At temperature 0 a proposal is kept where it is
    the target's most probable token.
    """
    assert target.tokenizer is not None
    eos, size, pad = target.tokenizer.eos, target.tokenizer.size, target.tokenizer.pad
    texts, found = [list(prompt) for prompt in prompts], Decoded(gamma)
    room = [len(prompt) + tokens for prompt in prompts]
    active = list(range(len(texts)))
    block = 0

    def said(actor: Actor, rows: list[list[int]], last: int) -> Float[Tensor, "rows last vocabulary"]:
        """Probabilities after each of the last so many tokens."""
        length = torch.tensor([len(row) for row in rows], device=seeds.device)
        width = int(length.max())
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=seeds.device)
        mask = (torch.arange(width, device=ids.device) < length[:, None]).long()
        logits = actor({"input_ids": ids, "attention_mask": mask, "id": length})["logits"]
        at = length[:, None] - last + torch.arange(last, device=ids.device)
        who = torch.arange(len(rows), device=ids.device)[:, None]
        taken = cut(rows_of(logits, (who, at)), size)
        whole = taken.materialise() if isinstance(taken, Projection) else taken
        return distribution(whole, temperature=temperature).exp()

    with undisturbed(draft.model, target.model):
        while active:
            own = fold(seeds[active], block)
            longer, q = [list(texts[i]) for i in active], []
            for step in range(gamma):
                q.append(said(draft, longer, 1)[:, 0])
                chosen = draw(q[-1].log(), fold(own, step))
                longer = [[*row, token] for row, token in zip(longer, chosen.tolist())]
            proposed = torch.tensor([row[-gamma:] for row in longer], device=seeds.device)
            kept, after = verified(said(target, longer, gamma + 1), torch.stack(q, 1), proposed, fold(own, gamma))
            for i, row, n, token in zip(active, proposed.tolist(), kept.tolist(), after.tolist()):
                new = [*row[:n], token]
                end = next((k + 1 for k, one in enumerate(new) if one in eos), None)
                if end is None and len(texts[i]) + gamma < room[i]:
                    found.kept.append(n)
                texts[i] = [*texts[i], *new[:end]][: room[i]]
            block += 1
            active = [i for i in active if len(texts[i]) < room[i] and texts[i][-1] not in eos]
    found.texts = [text[len(prompt) :] for text, prompt in zip(texts, prompts)]
    return found


def unfit(tokens: Tokens | None, target: Actor | None, task: str | None = None) -> str | None:
    """Why a student with this tokenizer cannot be measured as a draft for this teacher, in a sentence; None where it can.

    Args:
        task: its name; None says nothing of it.
    """
    who = "the check 'speculative' measures the student as a draft for its teacher"
    leave = "Leave speculative out of evaluate"
    if task is not None and task not in LANGUAGE:
        return f"{who}, token by token, and the task is {task}. {leave}"
    if target is None:
        return f"{who}, and there is no teacher. {leave}, or give one"
    if isinstance(target, Teacher) and len(target.members) > 1:
        return (
            f"{who}, and these are several teachers, of whom none alone has the last word. {leave}, or give one of them"
        )
    if next(iter(target.model.parameters()), None) is None:
        where = target.source.describe()
        return f"{who}, which reads what both write, and this teacher is no network here ({where}). {leave}, or give the teacher itself"
    if tokens is None or target.tokenizer is None:
        whose = "student" if tokens is None else "teacher"
        return f"{who}, and no tokenizer lies beside the {whose}. {leave}, or say where it is: {whose}.tokenizer=FOLDER"
    if not tokens.same_as(target.tokenizer):
        return f"{who}, token by token, and {target.tokenizer.difference(tokens)}. {leave}"
    return None


def fits(draft: Actor, target: Actor | None) -> bool:
    """Whether the target is another network that is here and reads the same tokens."""
    here = not draft.stored and next(iter(draft.model.parameters()), None) is not None
    return here and draft is not target and unfit(draft.tokenizer, target) is None


@torch.no_grad()
def speculative(
    draft: Actor,
    target: Actor,
    once: Batches,
    *,
    world: World | None = None,
    gamma: int = GAMMA,
    prompts: int = PROMPTS,
    tokens: int = NEW,
) -> dict[str, float]:
    """Figures of a draft for its target on a split.

    Exact, over every answer token of the split and at temperature 1: `acceptance`, the mean of sum_v min(p_v, q_v), the
    probability that a proposal is kept there; `greedy_acceptance`, how often both have the same most probable token.
    Measured, on the first `prompts` prompts, once at temperature 1 and once greedily (`greedy_...`): `accepted`,
    `block_efficiency` (see `Decoded`), and, where both are models of transformers, through whose assisted generation they
    then write, `speedup`: time per token of the target alone over that with the draft, the median over the prompts.
    """
    found = exact(draft, target, once, world or World())
    starts, ids = held_out(target, once, prompts, tokens + gamma + 1, [draft, target])
    if not starts:
        return found
    for name, temperature in (("", 1.0), ("greedy_", 0.0)):
        if assists(draft, target):
            blocks, speedup = generated(draft, target, starts, gamma=gamma, tokens=tokens, temperature=temperature)
            found[f"{name}speedup"] = speedup
        else:
            seeds = seeds_for(ids, 0, 0)
            blocks = decoded(draft, target, starts, seeds, gamma=gamma, tokens=tokens, temperature=temperature)
        found |= {f"{name}accepted": blocks.accepted, f"{name}block_efficiency": blocks.block_efficiency}
    return found


@torch.no_grad()
def exact(draft: Actor, target: Actor, once: Batches, world: World) -> dict[str, float]:
    """`acceptance` and `greedy_acceptance`; the distributions of a split are never held as a whole."""
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)
    for batch in once():
        if batch.get("ghost"):
            continue
        mask: Bool[Tensor, "batch tokens"] = batch["answer"]
        ours, theirs = draft(batch)["logits"], target(batch)["logits"]
        known = min(ours.shape[-1], theirs.shape[-1], *([] if target.tokenizer is None else [target.tokenizer.size]))
        ours, theirs = cut(ours, known), cut(theirs, known)
        apart = values_of(tvd, ours, theirs, mask)
        same = most_probable(ours, mask) == most_probable(theirs, mask)
        counted = mask.sum().double()
        sums += torch.stack([counted - apart[mask].double().sum(), same[mask].double().sum(), counted])
    sums = world.sum_(sums)
    return {name: float(sums[i] / sums[2]) for i, name in enumerate(("acceptance", "greedy_acceptance"))}


def cut(logits: Float[Tensor, "... classes"] | Projection, size: int) -> Float[Tensor, "... size"] | Projection:
    """The logits of the first `size` classes: what follows is padding of the head."""
    if isinstance(logits, Tensor):
        return logits[..., :size]
    return replace(logits, weight=logits.weight[:size], bias=None if logits.bias is None else logits.bias[:size])


def held_out(
    target: Actor, once: Batches, most: int, room: int, readers: list[Actor]
) -> tuple[list[list[int]], Int64[Tensor, "prompts"]]:
    """The first prompts of a split after which both can still read so many tokens, and the ids of their rows."""
    contexts = [n for n in (context_of(actor.model) for actor in readers) if n is not None]
    starts: list[list[int]] = []
    ids: list[Tensor] = []
    for batch in once():
        own = target.own(pick(batch, torch.arange(len(batch["id"]))))
        length = prompt_lengths(own, TEXT_PROMPT)
        for row, n, number in zip(own["input_ids"].tolist(), length.tolist(), own["id"]):
            if len(starts) < most and n + room <= min(contexts, default=math.inf):
                starts.append(row[:n])
                ids.append(number)
        if len(starts) >= most:
            break
    return starts, torch.stack(ids) if ids else torch.zeros(0, dtype=torch.int64)


def assists(draft: Actor, target: Actor) -> bool:
    """Whether transformers can let the one assist the other: both generate, with heads of the same length."""
    sizes = [getattr(getattr(actor.model, "config", None), "vocab_size", None) for actor in (draft, target)]
    return all(hasattr(actor.model, "generate") for actor in (draft, target)) and sizes[0] == sizes[1]


class _Blocks:
    """A streamer of transformers: it is given the prompt, then the tokens of every block."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []

    def put(self, value: Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        """Nothing is left to write."""


def generated(
    draft: Actor, target: Actor, prompts: list[list[int]], *, gamma: int, tokens: int, temperature: float
) -> tuple[Decoded, float]:
    """Assisted generation of transformers, and by how much it is faster than the target alone, prompt by prompt in turn."""
    from transformers import GenerationConfig

    assert target.tokenizer is not None
    ours, theirs, eos = draft.model, target.model, target.tokenizer.eos
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=tokens,
        eos_token_id=list(eos) or None,
        pad_token_id=eos[0] if eos else None,  # nothing is padded here; the draft's mask is guessed from any other pad
        use_cache=True,
        **(how if temperature else {"do_sample": False}),
    )
    found, ratios = Decoded(gamma), []
    device = next(theirs.parameters()).device
    with undisturbed(ours, theirs), plainly(theirs), drafting(ours, gamma):
        for number, prompt in enumerate([prompts[0], *prompts]):  # the first warms up
            ids = torch.tensor([prompt], device=device)
            spent, blocks = [], _Blocks()
            for more in ({}, {"assistant_model": ours, "streamer": blocks}):
                torch.manual_seed(number)
                started = time.perf_counter()
                text = theirs.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, **more)  # type: ignore[operator]
                spent.append((time.perf_counter() - started) / max(text.shape[1] - len(prompt), 1))
            if number == 0:
                continue
            ratios.append(spent[0] / spent[1])
            new = text[0, len(prompt) :]
            found.texts.append(new.tolist())
            left = tokens
            for block in blocks.given[1:]:
                ended = bool(ends(torch.tensor(block), eos).any())
                if left > gamma and not ended:
                    found.kept.append(len(block) - 1)
                left -= len(block)
    return found, statistics.median(ratios)


@contextmanager
def drafting(model: Any, gamma: int) -> Iterator[None]:
    """A model of transformers that proposes gamma tokens at a time, however sure it is."""
    from transformers import GenerationConfig

    with plainly(model):
        model.generation_config = GenerationConfig(
            num_assistant_tokens=gamma,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
        )
        yield
