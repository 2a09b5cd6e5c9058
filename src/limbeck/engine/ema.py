"""An exponential moving average of a network, kept beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.engine import weights


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights after every step of the student; buffers are copied.

    The decay is shortened in the beginning, min(decay, (1 + n) / (10 + n)) after n steps, so that the random start
    is forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = model, decay, 0
        fixed = weights.elsewhere(model)
        self.average = {n: tensor.detach().clone() for n, tensor in model.state_dict().items() if n not in fixed}

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights in."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in self._now().items():
            if tensor.is_floating_point():
                self.average[name].lerp_(tensor, 1 - keep)
            else:
                self.average[name].copy_(tensor)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the average inside this block, and its own weights again after it."""
        own = {name: tensor.detach().clone() for name, tensor in self._now().items()}
        self.give()
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def give(self) -> None:
        """Put the average into the model for good."""
        self.model.load_state_dict(self.average, strict=False)  # what never changes is not averaged

    def _now(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in self.average}

    def state_dict(self) -> dict[str, Tensor | int]:
        """For a checkpoint."""
        return {"updates": self.updates, **{f"average.{n}": weights.whole(t) for n, t in self.average.items()}}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """From a checkpoint."""
        self.updates = int(state["updates"])
        for name, tensor in self.average.items():
            tensor.copy_(weights.like(state[f"average.{name}"], tensor))  # type: ignore[arg-type]
