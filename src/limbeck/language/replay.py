"""Rollouts kept for later: first in, first out; drawn at random by the rows' own seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor, nn

from limbeck.language.prompts import Batch, choose_rows, columns_of, renewed
from limbeck.randomness import fold, uniform

_NAMES = ("ids", "prompt", "length", "row", "log_probs")


class Replay(nn.Module):
    """The last `capacity` rollouts of at most `width` tokens, as buffers: a checkpoint holds them.

    A method gives `kept(batch)` to its loss's record and the outcome's record to `push`, so that every process holds the
    rollouts of all of them, in one order, and what is drawn depends on no cut and on no number of processes.

    Args:
        capacity: how many rollouts; the oldest goes when a further one comes.
        width: the most tokens of one, prompt and all; longer ones are not kept.
        pad: the id that fills rows up.
        pieces: the bytes of every token, for `answer_bytes`.
    """

    ids: Int32[Tensor, "capacity width"]
    prompt: Int64[Tensor, "capacity"]
    length: Int64[Tensor, "capacity"]
    row: Int64[Tensor, "capacity"]
    log_probs: Float[Tensor, "capacity width"]
    pushed: Int64[Tensor, ""]

    def __init__(self, capacity: int, width: int, *, pad: int, pieces: Sequence[bytes] | None = None):
        super().__init__()
        self.capacity, self.width, self.pad, self.pieces = capacity, width, pad, pieces
        self.register_buffer("ids", torch.zeros(capacity, width, dtype=torch.int32))
        self.register_buffer("log_probs", torch.zeros(capacity, width))
        for name in ("prompt", "length", "row"):
            self.register_buffer(name, torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """How many rollouts there are to draw from."""
        return min(int(self.pushed), self.capacity)

    @property
    def full(self) -> bool:
        """Whether the next rollout drives one out."""
        return len(self) == self.capacity

    def kept(self, batch: Mapping[str, Any], which: Bool[Tensor, "batch"] | None = None) -> dict[str, Tensor]:
        """What `push` needs of the rollouts in a batch, of a width that does not depend on it; `which`: only these rows."""
        ids, answer = batch["input_ids"], batch["answer"]
        length = batch["attention_mask"].sum(1)
        fits = (length <= self.width) & answer.any(1)
        if which is not None:
            fits = fits & which
        tail = (0, max(0, self.width - ids.shape[1]))
        log_probs = batch.get("old_log_probs", torch.zeros_like(ids, dtype=torch.float32))
        return {
            "replay_ids": nn.functional.pad(ids, tail)[:, : self.width].to(torch.int32),
            "replay_log_probs": nn.functional.pad(log_probs.roll(1, 1), tail)[:, : self.width],
            "replay_prompt": answer.long().argmax(1) + 1,
            "replay_length": torch.where(fits, length, 0),
            "replay_row": batch["id"],
        }

    def push(self, record: Mapping[str, Tensor]) -> None:
        """Take in what `kept` gave, joined over pieces and processes; in the order of the rows' ids, whoever had them."""
        rows = (record["replay_length"] > 0).nonzero().squeeze(1)
        rows = rows[record["replay_row"][rows].argsort(stable=True)][-self.capacity :]
        at = (int(self.pushed) + torch.arange(len(rows), device=rows.device)) % self.capacity
        for name in _NAMES:
            buffer = getattr(self, name)
            buffer[at] = record[f"replay_{name}"][rows].to(buffer)
        self.pushed += len(rows)

    def draw(self, batch: Mapping[str, Any], seeds: Int64[Tensor, "batch"]) -> Batch:
        """The batch with stored rollouts in place of its texts, each drawn uniformly, with replacement, by its row's seed.

        `id` is that of the row that a rollout was written for.
        """
        if not len(self):
            raise ValueError("nothing was pushed yet, so there is nothing to draw from.")
        at = (uniform(seeds) * len(self)).long().clamp(max=len(self) - 1)
        columns = columns_of(
            self.ids[at].long(),
            self.prompt[at],
            self.length[at],
            pad=self.pad,
            pieces=self.pieces,
            log_probs=self.log_probs[at],
        )
        return renewed(batch, {**columns, "id": self.row[at]})

    def mixed(self, batch: Batch, seeds: Int64[Tensor, "batch"], rate: float) -> Batch:
        """Each row of a batch of rollouts exchanged for a stored one with probability `rate`; none while nothing is stored."""
        if rate == 0 or not len(self):
            return batch
        fresh = uniform(fold(seeds, 1)) >= rate
        return choose_rows(fresh, batch, self.draw(batch, fold(seeds, 2)), self.pad)
