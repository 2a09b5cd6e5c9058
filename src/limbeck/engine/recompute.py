"""Gradient checkpointing: what a block of a network computed is not kept for the backward pass, but computed again there.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv:1604.06174), at the network's own blocks. Costs
about one more forward pass; gradients are the same, since random generators are put back for the second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from limbeck.actors import Actor
from limbeck.engine.sharding import blocks
from limbeck.errors import RecipeError
from limbeck.listening import Recorder, Visit


@contextmanager
def recomputing(student: Actor, *others: Actor, on: bool = True) -> Iterator[None]:
    """Inside this block (and in train mode) the blocks of the student, and of others that have any, keep their inputs only.

    Raises:
        RecipeError: the student has no blocks: nothing in an `nn.ModuleList`, and no support of its own.
    """
    with ExitStack() as stack:
        for actor in (student, *others) if on else ():
            if stack.enter_context(_recomputing(actor)) or actor is not student:
                continue
            raise RecipeError(
                f"train.gradient_checkpointing computes blocks twice, and {type(actor.model).__name__} has none (no nn.ModuleList). "
                "Leave it out, or make micro_batch smaller."
            )
        yield


@contextmanager
def _recomputing(actor: Actor) -> Iterator[bool]:
    """The same for one network; gives whether it has blocks."""
    model: Any = actor.model
    again = _Again(actor._recorder)
    if getattr(model, "supports_gradient_checkpointing", False) and hasattr(model, "gradient_checkpointing_enable"):
        name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"  # by the version
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False, "context_fn": again})
        try:
            yield True
        finally:
            getattr(model, f"{name}_checkpointing_disable")()
        return
    found = list(blocks(model))
    for block in found:
        block.forward = _Recomputed(block, again)  # type: ignore[assignment]
    try:
        yield bool(found)
    finally:
        for block in found:
            vars(block).pop("forward", None)


class _Again:
    """Contexts for the two passes through a block: the second sees what the first had replaced at its taps."""

    def __init__(self, recorder: Recorder):
        self.recorder = recorder

    def __call__(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        visit = self.recorder.visits[-1] if self.recorder.visits else None
        return nullcontext(), nullcontext() if visit is None else self._heard(visit)

    @contextmanager
    def _heard(self, visit: Visit) -> Iterator[None]:
        self.recorder.visits.append(Visit(visit.replace, None))
        try:
            yield
        finally:
            self.recorder.visits.pop()


class _Recomputed:
    """A block's forward. An object and not a closure: a deep copy of the network gets one of its own block."""

    def __init__(self, block: nn.Module, again: _Again):
        self.block, self.again = block, again

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = type(self.block).forward
        if not (self.block.training and torch.is_grad_enabled()):
            return forward(self.block, *args, **kwargs)
        return checkpoint(forward, self.block, *args, use_reentrant=False, context_fn=self.again, **kwargs)
