"""How much memory one forward pass needs at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes of new tensors that are alive at one time while `function` runs without gradients.

    On a GPU the allocator's own count. On a CPU every operation is watched: what it returns counts from then on until
    nobody holds it; room that an operation takes for itself and gives back (a convolution's workspace) is not seen,
    nor is what was there before (weights, the batch).
    """
    if torch.cuda.is_available():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.no_grad():
            function()
        return torch.cuda.max_memory_allocated() - before
    watch = Watch()
    with torch.no_grad(), watch:
        function()
    return watch.peak


class Watch(TorchDispatchMode):
    """Counts the storages that appear in results of operations, and those that are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        known = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if id(storage) not in known and id(storage) not in self.alive:
                    self.alive[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return result
