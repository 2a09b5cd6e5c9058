"""From numbers to places on paper, and the round numbers worth a tick."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

TINY = 1e-250  # below it floats lose their digits, and a logarithm of them shows nothing


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] onto [start, end], linearly or by logarithm; values outside are held at the ends."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round numbers inside the scale, about as many as wanted."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _ticks(self.low, self.high, wanted)


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False, room: float = 0.06) -> Scale:
    """A scale that holds all finite values with some room around them; one value alone gets a span of its own."""
    finite = [value for value in values if math.isfinite(value) and (value > TINY or not log)] or [
        0.0 if not log else 1.0
    ]
    low, high = min(finite), max(finite)
    if log:
        low, high = (low / 2, high * 2) if high / low < 1.02 else (low, high)
        grown = (high / low) ** room
        return Scale(low / grown, high * grown, start, end, log=True)
    if high - low <= max(1e-9 * max(abs(low), abs(high)), TINY):
        half = abs(low) * 0.1 if abs(low) > TINY else 1.0
        low, high = low - half, high + half
    more = (high - low) * room
    return Scale(low - more, high + more, start, end)


def spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved apart until neighbours are at least ``gap`` from each other, within [low, high] where they fit."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [min(max(place, low), high) for place in places]
    for before, here in pairwise(order):
        moved[here] = max(moved[here], moved[before] + gap)
    for after, here in zip(order[::-1], order[-2::-1]):
        moved[order[-1]] = min(moved[order[-1]], high)
        moved[here] = min(moved[here], moved[after] - gap)
    return moved


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / max(1, wanted)
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) >= min(3, wanted):
            return found[:: math.ceil(len(found) / (wanted + 1))]
    return _ticks(low, high, wanted)
