"""What stands around the network of a diffusers pipeline: autoencoder, text encoders, scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

NETWORKS = ("unet", "transformer")
"""What pipelines call the network that denoises."""


class Companions:
    """What stands around the network in its pipeline: all its parts, by name. Never copied, never trained."""

    def __init__(self, pipeline: Any = None, scheduler: Any = None) -> None:
        self.pipeline, self.scheduler = pipeline, scheduler if pipeline is None else pipeline.scheduler
        for name in self._modules():
            self.part(name).requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Companions:
        return self

    def part(self, name: str) -> Any:
        """A part of the pipeline; None where it has none of this name."""
        return getattr(self.pipeline, name, None)

    @contextmanager
    def whole(self, network: nn.Module) -> Iterator[Any]:
        """The pipeline with a network lent to it: some look at its configuration when they encode a text."""
        name = next(n for n in NETWORKS if hasattr(self.pipeline, n))
        setattr(self.pipeline, name, network)
        try:
            yield self.pipeline
        finally:
            setattr(self.pipeline, name, None)

    def parts(self, beginning: str) -> dict[str, nn.Module]:
        """The networks whose names begin so."""
        return {name: self.part(name) for name in self._modules() if name.startswith(beginning)}

    def near(self, device: torch.device) -> None:
        """Everything where the network is."""
        for name in self._modules():
            if next(self.part(name).parameters()).device != device:
                self.part(name).to(device)

    def _modules(self) -> list[str]:
        parts = {} if self.pipeline is None else self.pipeline.components
        return [n for n, part in parts.items() if isinstance(part, nn.Module) and n not in NETWORKS]
