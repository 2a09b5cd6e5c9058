"""Between the columns of a language batch and texts: where the prompts are, and what columns a continued prompt has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError

UNCOUNTED = -100
COLUMNS = ("input_ids", "attention_mask", "target", "answer", "answer_bytes", "old_log_probs")
"""What `columns_of` makes; `position_ids`, `segment`, `group` and the columns of one actor alone are of the old text."""
_STALE = ("position_ids", "segment", "group")

Batch = dict[str, Any]
Tokens2D = Int64[Tensor, "batch tokens"]
Rows = Int64[Tensor, "batch"]


def prompt_lengths(batch: Mapping[str, Any], text_prompt: int = 1) -> Rows:
    """How many tokens of each row are its prompt: those before the last run of counted targets.

    `target[t]` is the token after position t, so a run that begins at t leaves t + 1 tokens. A row without a counted
    target is a prompt as a whole. Plain text, where every token is a target, has no prompt of its own: its first
    `text_prompt` tokens are taken (all there are, where they are fewer).

    Raises:
        RecipeError: rows hold several documents each, or one holds no token at all.
    """
    if "segment" in batch and bool((batch["segment"] > 0).any()):
        raise RecipeError(
            "prompts are to be continued, and the rows of these data hold several packed documents each. Rollouts need one "
            "document per row: data.pack=false"
        )
    counted = batch["target"] != UNCOUNTED
    begins = counted & ~torch.nn.functional.pad(counted, (1, 0))[:, :-1]
    length = batch["attention_mask"].sum(1)
    if not bool((length > 0).all()):
        row = int(batch["id"][length.argmin()]) if "id" in batch else int(length.argmin())
        raise RecipeError(f"row {row} is to be continued and holds no token at all. Give it a prompt, or leave it out.")
    after = torch.arange(1, counted.shape[1] + 1, device=counted.device)
    prompt = torch.where(begins.any(1), (begins * after).amax(1), length)
    return torch.where(prompt == 1, length.clamp(max=text_prompt), prompt)


def left_padded(ids: Tokens2D, lengths: Rows, pad: int) -> tuple[Tokens2D, Int64[Tensor, "batch tokens"]]:
    """The first `lengths` tokens of each row, moved to the right end of a row as long as the longest, with their mask."""
    width = int(lengths.max())
    at = torch.arange(width, device=ids.device) - (width - lengths)[:, None]
    real = at >= 0
    return torch.where(real, ids.gather(1, at.clamp(min=0)), pad), real.long()


def ends(ids: Tokens2D, eos: Sequence[int]) -> Bool[Tensor, "batch tokens"]:
    """Where a token ends its text."""
    return torch.isin(ids, torch.tensor(list(eos), dtype=ids.dtype, device=ids.device))


def written_lengths(written: Tokens2D, eos: Sequence[int]) -> Rows:
    """How many of the written tokens are the text: up to the first end, that token with them; all where none ends it."""
    ended = ends(written, eos).long()
    return (ended.cumsum(1) - ended == 0).sum(1)


def columns_of(
    ids: Tokens2D,
    prompt: Rows,
    length: Rows,
    *,
    pad: int,
    pieces: Sequence[bytes] | None = None,
    log_probs: Float[Tensor, "batch tokens"] | None = None,
) -> Batch:
    """The columns of texts of `length` tokens of which the first `prompt` are given and the rest counts.

    Args:
        ids: the texts, from the left; what follows `length` tokens is replaced by `pad`.
        pieces: the bytes of every token, for `answer_bytes`.
        log_probs: of each token of `ids`, moved to `old_log_probs` at the position that predicts it.
    """
    width = max(int(length.max()), 1)
    ids, at = ids[:, :width], torch.arange(width, device=ids.device)
    real = at < length[:, None]
    ids = torch.where(real, ids, pad)
    following = torch.nn.functional.pad(ids, (0, 1), value=pad)[:, 1:]
    answer = (at >= prompt[:, None] - 1) & (at < length[:, None] - 1)
    found: Batch = {
        "input_ids": ids,
        "attention_mask": real.long(),
        "target": torch.where(answer, following, UNCOUNTED),
        "answer": answer,
    }
    if pieces is not None:
        rows = found["target"].tolist()
        sizes = [sum(len(pieces[token]) for token in row if token != UNCOUNTED) for row in rows]
        found["answer_bytes"] = torch.tensor(sizes, dtype=torch.int64, device=ids.device)
    if log_probs is not None:
        moved = torch.nn.functional.pad(log_probs[:, :width].float(), (0, 1))[:, 1:]
        found["old_log_probs"] = torch.where(answer, moved, 0.0)
    return found


def renewed(batch: Mapping[str, Any], columns: Mapping[str, Any]) -> Batch:
    """The batch with other texts: new columns, those that described the old texts left out, everything else kept."""
    old = {*COLUMNS, *_STALE}
    kept = {
        name: value
        for name, value in batch.items()
        if name not in old and name.removeprefix("teacher_").removeprefix("student_") not in old
    }
    return {**kept, **columns}


def one_below_the_other(ours: Mapping[str, Any], theirs: Mapping[str, Any], pad: int) -> Batch:
    """The rows of one batch, then those of another with the same columns; the shorter texts padded."""
    found: Batch = {}
    for name in ours:
        a, b = ours[name], theirs[name]
        if isinstance(a, Tensor) and a.dim():
            found[name] = torch.cat(_widened(name, a, b, pad))
        else:
            found[name] = [*a, *b] if isinstance(a, list) else a
    return found


def choose_rows(first: Bool[Tensor, "batch"], ours: Mapping[str, Any], theirs: Mapping[str, Any], pad: int) -> Batch:
    """Rows of `ours` where `first`, else of `theirs`; columns that both have, the shorter texts padded."""
    chosen: Batch = {}
    for name in ours:
        a, b = ours[name], theirs.get(name)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            a, b = _widened(name, a, b, pad)
            chosen[name] = torch.where(first.view(-1, *[1] * (a.dim() - 1)), a, b)
        elif not isinstance(a, Tensor):
            chosen[name] = a
    return chosen


def _widened(name: str, a: Tensor, b: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Both as long as the longer one, where they are columns of texts."""
    if a.dim() < 2 or name not in COLUMNS:
        return a, b
    width, fill = max(a.shape[1], b.shape[1]), {"input_ids": pad, "target": UNCOUNTED}.get(name, 0)
    longer = [torch.nn.functional.pad(x, (0, width - x.shape[1]), value=fill) for x in (a, b)]
    return longer[0], longer[1]


def with_answers(
    batch: Mapping[str, Any],
    prompt: Rows,
    answer: Tokens2D,
    length: Rows,
    *,
    pad: int,
    pieces: Sequence[bytes] | None = None,
    log_probs: Float[Tensor, "batch answers"] | None = None,
) -> Batch:
    """The batch with other answers: the first `prompt` tokens of each row, then the first `length` of its `answer`."""
    ids = batch["input_ids"]
    at = torch.arange(int((prompt + length).max()), device=ids.device)
    known = None if log_probs is None else _row_by_row(torch.zeros_like(ids).float(), log_probs, prompt, at)
    joined = _row_by_row(ids, answer.to(ids.dtype), prompt, at)
    return renewed(batch, columns_of(joined, prompt, prompt + length, pad=pad, pieces=pieces, log_probs=known))


def answers_of(batch: Mapping[str, Any], width: int, pad: int) -> tuple[Tokens2D, Rows]:
    """The counted tokens of each row's one run, from the left, padded or cut to `width`; and how many they are."""
    answer = batch["answer"]
    begin, length = answer.long().argmax(1) + 1, answer.sum(1).clamp(max=width)
    at = torch.arange(width, device=answer.device)
    ids = batch["input_ids"].gather(1, (begin[:, None] + at).clamp(max=answer.shape[1] - 1))
    return torch.where(at < length[:, None], ids, pad), length


def _row_by_row(first: Tensor, second: Tensor, border: Int64[Tensor, "batch"], at: Int64[Tensor, "tokens"]) -> Tensor:
    """Row i: `first[i]` up to `border[i]`, then `second[i]` from its beginning."""
    behind = at - border[:, None]
    ours = first.gather(1, at.clamp(max=first.shape[1] - 1).expand(len(first), -1))
    theirs = second.gather(1, behind.clamp(0, second.shape[1] - 1))
    return torch.where(behind < 0, ours, theirs)
