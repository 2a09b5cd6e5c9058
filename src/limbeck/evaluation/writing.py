"""What a language model writes: continuations of held-out prompts, how likely the teacher finds them, how varied they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.actors import Actor
from limbeck.data.collate import pick
from limbeck.engine.validate import Batches
from limbeck.errors import RecipeError
from limbeck.language.prompts import prompt_lengths
from limbeck.language.rollouts import Sampler
from limbeck.randomness import seeds_for
from limbeck.tasks import Task

SAMPLER = Sampler(max_new_tokens=64)
PROMPTS = 64


@dataclass
class Written:
    """Figures of what an actor wrote, and the texts: `(prompt, continuation)` each."""

    figures: dict[str, float] = field(default_factory=dict)
    texts: list[tuple[str, str]] = field(default_factory=list)


def writing(
    actor: Actor,
    once: Batches,
    task: Task,
    *,
    judge: Actor | None = None,
    prompts: int = PROMPTS,
    sampler: Sampler = SAMPLER,
) -> Written:
    """Let an actor continue the first `prompts` prompts of a split; the draws depend on the rows alone.

    Figures: `written_tokens` (mean length), `distinct_2` and `distinct_3` (see `distinct`), and, with a judge who splits
    text alike, `judged_nll`: the mean of -log p(judge) per token written, in nats. A text that repeats itself is likely to
    a judge and not varied, so both belong together.

    Raises:
        RecipeError: the actor has no tokenizer.
    """
    tokens = actor.tokenizer
    if tokens is None:
        raise RecipeError(
            f"the check 'writing' lets the {actor.whose} write, and no tokenizer lies beside it: {actor.whose}.tokenizer=FOLDER"
        )
    found, nats, counted, left = Written(), 0.0, 0, prompts
    ids: list[list[int]] = []
    for batch in once():
        own = actor.own(pick(batch, torch.arange(min(left, len(batch["id"])))))
        left -= len(own["id"])
        before = prompt_lengths(own, sampler.text_prompt)
        made = sampler(actor.model, tokens, own, seeds_for(own["id"], 0, 0))
        rows = [row[mask].tolist() for row, mask in zip(made["target"], made["answer"])]
        ids += rows
        found.texts += [
            (tokens.decode(start[:n].tolist()), tokens.decode(row))
            for start, n, row in zip(own["input_ids"], before.tolist(), rows)
        ]
        if judge is not None and judge.tokenizer is not None and judge.tokenizer.same_as(tokens):
            with torch.no_grad():
                sums, _ = task.outputs(judge(made), made)
            nats, counted = nats + float(sums[:, 0].sum()), counted + int(sums[:, 1].sum())
        if left <= 0:
            break
    found.figures = {
        "written_tokens": sum(map(len, ids)) / max(len(ids), 1),
        "distinct_2": distinct(ids, 2),
        "distinct_3": distinct(ids, 3),
    }
    if counted:
        found.figures["judged_nll"] = nats / counted
    return found


def distinct(texts: Sequence[Sequence[int] | Int[Tensor, "tokens"]], n: int) -> float:
    """Different runs of n tokens over all runs of n tokens, in all texts together, in [0, 1]; nan if there is no run.

    Source: Li et al. 2016, "A diversity-promoting objective function for neural conversation models", section 5.
    """
    runs = [tuple(text[i : i + n]) for text in map(list, texts) for i in range(len(text) - n + 1)]
    return len(set(runs)) / len(runs) if runs else float("nan")


def side_by_side(wrote: dict[str, Written], most: int = 6) -> dict[str, Any]:
    """A finding for the report: prompts, and what everyone wrote."""
    first = next(iter(wrote.values()))
    shown = range(min(most, len(first.texts)))
    return {
        "kind": "table",
        "title": "What they write",
        "text": "Continuations of held-out prompts, drawn at temperature 1 (cut to 64 tokens).",
        "rows": [first.texts[i][0][-200:] for i in shown],
        "columns": list(wrote),
        "values": [[written.texts[i][1] for written in wrote.values()] for i in shown],
    }
