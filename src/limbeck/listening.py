"""Listening in a network: hooks at named places, and what one forward pass heard there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from limbeck.signals import Place, put, select

Replace = Mapping[str, Callable[[Any], Any]]


class Enough(BaseException):
    """Every value that was asked for has been seen; the rest of the forward pass is not run.

    Not an Exception, so that a network's own `except Exception` does not swallow it.
    """


class Visit:
    """What is asked of one forward pass, and what it gave so far."""

    def __init__(self, replace: Replace, stop_after: Counter[str] | None):
        self.replace = replace
        self.remaining = stop_after
        self.values: dict[str, Any] = {}
        self.fired: Counter[str] = Counter()

    def meet(self, name: str, keys: tuple[str, ...], value: Any) -> Any:
        """Record the tap's part of `value`; give back the value, with that part replaced if it was asked for."""
        if name in self.replace:
            value = put(value, keys, self.replace[name])
        self.values[name] = select(value, keys)
        self.fired[name] += 1
        if self.remaining is not None and self.remaining[name] > 0:
            self.remaining[name] -= 1
            if not any(self.remaining.values()):
                raise Enough
        return value


class Recorder:
    """The visits under way in one network, innermost last; None while a replacement is made. Shared by its hooks."""

    def __init__(self) -> None:
        self.visits: list[Visit | None] = []


class Hook:
    """Listens at one place. An object and not a closure: a deep copy of the network gets hooks with a recorder of its own."""

    def __init__(self, recorder: Recorder, name: str, place: Place):
        self.recorder, self.name, self.place = recorder, name, place

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, *output: Any) -> Any:
        visit = self.recorder.visits[-1] if self.recorder.visits else None
        if visit is None:
            return None
        self.recorder.visits.append(None)  # a replacement may itself run this network, for somebody else
        try:
            if not self.place.input:
                return visit.meet(self.name, self.place.keys, output[0])
            if args:
                return (visit.meet(self.name, self.place.keys, args[0]), *args[1:]), kwargs
            first = next(iter(kwargs))
            return args, kwargs | {first: visit.meet(self.name, self.place.keys, kwargs[first])}
        finally:
            self.recorder.visits.pop()
