"""The precision of a run, lent for the length of a step to everything that asks a network: losses, `learn`, rollouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

Precision = Callable[[], AbstractContextManager[Any]]

_LENT: ContextVar[Precision] = ContextVar("precision", default=nullcontext)


@contextmanager
def lent(precision: Precision) -> Iterator[None]:
    """Inside this block networks compute in `precision()`, an autocast."""
    before = _LENT.set(precision)
    try:
        yield
    finally:
        _LENT.reset(before)


def in_precision() -> AbstractContextManager[Any]:
    """The autocast of the step that is being played; outside of steps (validation, measuring, shipping) nothing.

    Actors and `Sampler` enter it by themselves. A method that calls a bare module in `learn` says `with in_precision():`.
    What is no network's (times, noise, solvers, averages, memories) stays as precise as it is.
    """
    return _LENT.get()()
