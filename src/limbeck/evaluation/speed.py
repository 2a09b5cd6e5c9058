"""What a model costs to run: time for one example, parameters, bytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Time of one call in milliseconds: the median, the quartiles around it, of how many calls, and what 95 % of them keep."""

    median: float
    low: float
    high: float
    repeats: int
    p95: float


def latency(function: Callable[..., Any], *example: Any, repeats: int = 30, warmup: int = 5) -> Latency:
    """Median time in ms of ``function(*example)`` without gradients, after ``warmup`` calls that are not counted.

    The median and the quartiles, since the mean of wall-clock times follows whatever else the machine did. Where there
    is an accelerator each call is waited for. The caller sets a model to eval mode.
    """
    if repeats < 1:
        raise ValueError(f"latency needs at least one repeat; {repeats} were asked for.")
    times = []
    with torch.no_grad():
        for turn in range(warmup + repeats):
            _wait()
            start = time.perf_counter()
            function(*example)
            _wait()
            if turn >= warmup:
                times.append((time.perf_counter() - start) * 1000)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if repeats > 1 else times * 3
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1] if repeats > 1 else times[0]
    return Latency(median, low, high, repeats, p95)


def parameters(module: nn.Module) -> int:
    """How many numbers can be learned; a tensor that two layers share counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def size_bytes(module: nn.Module) -> int:
    """Bytes of the state that is saved (parameters and persistent buffers); shared tensors count once."""
    tensors = {(t.data_ptr(), t.shape, t.stride()): t for t in module.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
