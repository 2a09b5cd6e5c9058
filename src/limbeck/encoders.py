"""What is inside an encoder: the stream before and behind each block, queries, keys and values, and which tokens count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.actors import Actor
from limbeck.errors import RecipeError
from limbeck.layers import hear, its_own_network, listen, on_device
from limbeck.losses.masking import aligned
from limbeck.method import Batch, Transfer, name_of
from limbeck.models.blocks import Heads, blocks, heads_of
from limbeck.objectives import Loss
from limbeck.signals import Signals

Tokens = Float[Tensor, "batch tokens width"]
Mask = Bool[Tensor, "batch tokens"]


class Inside:
    """The blocks of one network, and where it is listened to; nothing is, until it is asked for.

    Queries, keys and values are what their projections give: nothing depends on how attention is computed (flash, sdpa,
    eager), and no network has to return its attentions. Rotary positions come later and are no part of them.
    """

    def __init__(self, actor: Actor, batch: Mapping[str, Any]):
        self.actor = actor
        self.blocks = blocks(actor.model)
        heard, _ = hear(actor, on_device(actor, batch))
        self._outputs = {h.where: h.path for h in heard}  # a block may give its tokens as the first of several
        self._heads: Heads | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def heads(self) -> Heads:
        """How queries, keys and values are cut into heads."""
        if self._heads is None:
            self._heads = heads_of(self.actor.model, self.blocks)
        return self._heads

    def stream(self, layer: int) -> str:
        """The signal of the stream behind block `layer`, counted from 1; 0 is what the first block is given.

        Raises:
            RecipeError: there is no such layer.
        """
        if not 0 <= layer <= len(self):
            raise RecipeError(f"the {self.actor.whose} has layers 0 (its embeddings) to {len(self)}, not {layer}.")
        path = self.blocks[layer - 1].path
        return listen(self.actor, self._outputs.get(path, path) if layer else f"{self.blocks[0].path}:input")

    def last(self) -> str:
        """The signal of the stream that the head reads: behind the last block, and its norm where there is one."""
        if "hidden" in self.actor.paths:
            return "hidden"
        prefix = getattr(self.actor.model, "base_model_prefix", "")
        if prefix and hasattr(self.actor.model, prefix):
            return listen(self.actor, f"{prefix}.last_hidden_state")
        return self.stream(len(self))

    def attention(self, layer: int) -> tuple[str, ...]:
        """The signals of the projections of block `layer`, counted from 1; `split` takes them apart."""
        self.stream(layer)
        return tuple(listen(self.actor, path) for path in self.blocks[layer - 1].attention)

    def split(self, signals: Signals, names: tuple[str, ...]) -> tuple[Tokens, Tokens, Tokens]:
        """Queries, keys and values [batch, tokens, width] out of the signals of `attention`."""
        return self.heads.split(tuple(signals[name] for name in names))


class EncoderTransfer(Transfer):
    """A transfer between two encoders that read the same tokens: `ours` and `theirs` is what is inside of them."""

    def prepare(self) -> None:
        its_own_network(self.teacher, f"{name_of(type(self))} looks into the teacher's blocks")
        split = self.data.splits["train"]
        rows = split.__getitems__(list(range(min(8, len(split)))))
        self.ours, self.theirs = Inside(self.student, rows), Inside(self.teacher, rows)
        mine, its = (_numbers(actor, rows) for actor in (self.student, self.teacher))
        if (
            mine is not None
            and its is not None
            and not (mine.shape == its.shape and torch.equal(mine.cpu(), its.cpu()))
        ):
            raise RecipeError(
                f"teacher and student split text differently, and {name_of(type(self))} compares token by token: give the student the teacher's "
                "tokenizer, or take a method that compares texts as wholes, such as kd."
            )

    def tokens(self, batch: Batch, like: Tokens) -> Mask:
        """Which of the tokens count: those that attention may look at, as the student's view says; else all.

        Raises:
            RecipeError: the mask has not one entry per token.
        """
        mask = self.student.shown(batch)[1].get("attention_mask")
        if mask is None or mask.dim() != 2:
            return torch.ones(like.shape[:2], dtype=torch.bool, device=like.device)
        return aligned(mask.bool().to(like.device), like.shape[:2], "attention mask")


def _numbers(actor: Actor, rows: Mapping[str, Any]) -> Tensor | None:
    """The token numbers that a network is shown; None for one that is shown something else."""
    args, keys = actor.shown(rows)
    first = keys.get("input_ids", args[0] if args else None)
    return first if isinstance(first, Tensor) and not first.is_floating_point() else None


def mean_over_tokens(name: str, values: Float[Tensor, "tokens"], counts: Mask) -> Loss:
    """The mean over all tokens of a step that count, of one value per token of the flattened batch."""
    return Loss.mean(name, values.view(counts.shape), counts)
