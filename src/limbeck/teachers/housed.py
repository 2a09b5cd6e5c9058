"""A frozen teacher that takes less room, or room of its own: its weights in 8 or 4 bits, its network on another device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from limbeck.actors import Batch, Replace, Teacher
from limbeck.errors import RecipeError
from limbeck.models.quantising import Bits, quantise, size_of
from limbeck.signals import Projection, Signals


class Housed(Teacher):
    """A teacher whose linear layers are rounded (`quantize`), or that lives on a `device` of its own; it cannot be trained.

    What it is shown is moved to its device, and its signals to where the batch is; the head of a language model is
    moved there once and kept, for it does not change. A module that is given is rounded in place.

    Args:
        quantize: `int8`, `int4` or `nf4`, see `limbeck.models.quantising`; layer by layer on the device where it will run,
            so that this device never holds it in full.
        device: such as `cuda:1` or `cpu`; None: where the training is.
        keys: as for any teacher.

    Raises:
        RecipeError: no such device, or a library that is not installed.
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        *,
        quantize: Bits | None = None,
        device: str | torch.device | None = None,
        **keys: Any,
    ):
        super().__init__(model, **keys)
        self.quantize, self.device = quantize, _known(device)
        self._parameters = sum(p.numel() for p in self.model.parameters())
        self._mark = super().fingerprint() if quantize is not None else None
        self._heads: dict[tuple[int, torch.device], Tensor] = {}
        if quantize is not None:
            quantise(self.model, quantize, self.device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
            self.listen_again()
        if self.device is not None:
            self.model.to(self.device)
            self.model.to = _Stays(self.model)  # type: ignore[assignment]  # whoever moves all networks leaves it here

    def __call__(
        self,
        batch: Batch,
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """As any teacher; signals are where the batch is."""
        if self.device is None:
            return super().__call__(batch, replace=replace, until=until, reads=reads)
        home = next((v.device for v in batch.values() if isinstance(v, Tensor)), self.device)
        there = {name: self._abroad(change, home) for name, change in (replace or {}).items()}
        heard = super().__call__(batch, replace=there, until=until, reads=reads)
        return Signals({name: self._moved(value, home) for name, value in heard.items()})

    def shown(self, batch: Batch) -> tuple[tuple, dict[str, Any]]:
        """The arguments of the network, on its device."""
        args, named = super().shown(batch)
        if self.device is None:
            return args, named
        return tuple(self._moved(a, self.device) for a in args), {
            n: self._moved(v, self.device) for n, v in named.items()
        }

    @property
    def mode(self) -> Literal["frozen", "through"]:  # type: ignore[override]
        """`frozen`, or `through` where its weights are not rounded."""
        return self._mode

    @mode.setter
    def mode(self, value: Literal["frozen", "through"]) -> None:
        if value == "through" and self.quantize is not None:
            raise RecipeError(
                f"this method lets gradients through the teacher, and its weights are rounded ({self.quantize}). Leave out teacher.quantize."
            )
        self._mode = value

    @property
    def learning(self) -> bool:  # type: ignore[override]
        """Never."""
        return False

    @learning.setter
    def learning(self, value: bool) -> None:
        if value:
            what = "quantize" if self.quantize is not None else "device"
            raise RecipeError(
                f"this method trains the teacher, which teacher.{what} rules out. Leave out teacher.{what}."
            )

    def parameters_count(self) -> int:
        """How many parameters it has, rounded ones included."""
        return self._parameters

    def bytes_count(self) -> int:
        """Bytes that it takes as it is."""
        return size_of(self.model)

    def fingerprint(self) -> str:
        """That of the weights before they were rounded, with the word for how."""
        return super().fingerprint() if self._mark is None else f"{self._mark}-{self.quantize}"

    def _abroad(self, change: Callable[[Any], Any], home: torch.device) -> Callable[[Any], Any]:
        def changed(value: Any) -> Any:
            return self._moved(change(self._moved(value, home)), self.device)

        return changed

    def _moved(self, value: Any, device: torch.device | None) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, Projection):
            bias = None if value.bias is None else self._head(value.bias, device)
            hidden, weight = self._moved(value.hidden, device), self._head(value.weight, device)
            return dataclasses.replace(value, hidden=hidden, weight=weight, bias=bias)
        if isinstance(value, Mapping):
            return {name: self._moved(part, device) for name, part in value.items()}
        return type(value)(self._moved(part, device) for part in value) if type(value) in (tuple, list) else value

    def _head(self, tensor: Tensor, device: torch.device | None) -> Tensor:
        """A part of the head on another device, moved the first time only."""
        if device is None or tensor.device == device:
            return tensor
        key = (tensor.data_ptr(), device)
        if key not in self._heads:
            self._heads[key] = tensor.detach().to(device)
        return self._heads[key]


class _Stays:
    """In place of a network's `to`: it stays where it is. An object, so that a copy has one of its own."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.model


def _known(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        said = str(error).strip().splitlines()[0]
        count = torch.cuda.device_count()
        raise RecipeError(
            f"teacher.device={device}: there is no such device ({said.rstrip('.')}). There is: cpu"
            + "".join(f", cuda:{i}" for i in range(count))
        ) from error
    return found
