"""Instruments of a rehearsal: where the time of a step goes, and which bytes are alive in it."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.actors import Actor
from limbeck.engine import random_state
from limbeck.engine.stepper import Stepper
from limbeck.objectives import Objective

now: Callable[[], float] = time.perf_counter  # the one clock of all that is measured here


class Clock:
    """Seconds per section, each without what was spent in sections inside it.

    On a CUDA device every edge of a section waits for the device, or the time would be that of asking.
    """

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0
        self._cuda = device if device.type == "cuda" else None

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time inside this block for `name`."""
        self._edge()
        self._open.append(name)
        try:
            yield
        finally:
            self._edge()
            self._open.pop()

    def _edge(self) -> None:
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        at = now()
        if self._open:
            self.seconds[self._open[-1]] = self.seconds.get(self._open[-1], 0.0) + at - self._since
        self._since = at

    def take(self) -> dict[str, float]:
        """The sections so far; counting begins anew."""
        taken, self.seconds = self.seconds, {}
        return taken

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` with its time counted for `name`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return function(*args, **kwargs)

        return call


@contextmanager
def heard(clock: Clock, actors: Mapping[int, tuple[str, Actor]]) -> Iterator[None]:
    """Inside the block every forward pass of these actors is counted under its name.

    By a class of its own for the actor, not by hooks: a teacher that stops early leaves its network by an exception.
    """
    with ExitStack() as undo:
        for name, actor in actors.values():
            kind = type(actor)
            undo.callback(setattr, actor, "__class__", kind)
            actor.__class__ = type(kind.__name__, (kind,), {"__call__": _counted(clock, name, kind)})
        yield


def _counted(clock: Clock, name: str, kind: type) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with clock(name):
            return kind.__call__(self, *args, **kwargs)

    return call


def count_terms(clock: Clock, method: nn.Module) -> None:
    """Count every term of the method's objectives under `term NAME` from now on."""
    for module in method.modules():
        for term in module.terms if isinstance(module, Objective) else ():
            term.around = partial(clock.wrapped, f"term {term.name}")


class Alive(TorchDispatchMode):
    """The most bytes of tensors made inside this block that were alive at one time: forward, backward and step alike.

    Each storage counts once, from the operation that made it until nobody holds it. What kernels take for themselves
    while they run is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                self._note(tensor)
        self.peak = max(self.peak, self.now)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of these tensors, each storage once."""
    sizes = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            sizes[_key(local)] = local.untyped_storage().nbytes()
    return sum(sizes.values())


def state_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


@contextmanager
def undisturbed(stepper: Stepper, device: torch.device) -> Iterator[None]:
    """A forward pass inside this block draws from generators that are put back, and leaves buffers as they were."""
    before = random_state.capture(device)
    buffers = [(b, b.clone()) for module in stepper.modules() for b in module.buffers()]
    try:
        yield
    finally:
        random_state.restore(before, device)
        with torch.no_grad():
            for buffer, old in buffers:
                buffer.copy_(old)
