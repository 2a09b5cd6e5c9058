"""Estimates with their intervals on one line each, small enough to stand in a table."""

from __future__ import annotations

from collections.abc import Callable

from limbeck.report.charts.canvas import line, mark, sheet, text
from limbeck.report.charts.scale import Scale, fit

WIDTH, HEIGHT = 220.0, 20.0


def scale_for(values: list[float], *, zero: bool = False) -> Scale:
    """One scale for all rows of a table; differences keep zero in sight."""
    return fit([*values, 0.0] if zero else values, 8, WIDTH - 8, room=0.08)


def whisker(
    scale: Scale, value: float, low: float | None, high: float | None, role: str, tip: str, *, zero: bool = False
) -> str:
    """A mark with its whiskers; a hairline at zero for differences."""
    middle = HEIGHT / 2
    body = [line(scale(0), 0, scale(0), HEIGHT, "zero")] if zero else []
    if low is not None and high is not None:
        body.append(line(scale(low), middle, scale(high), middle, f"whisker {role}"))
        body += [line(scale(end), middle - 3, scale(end), middle + 3, f"whisker {role}") for end in (low, high)]
    body.append(mark(scale(value), middle, role, tip))
    return sheet(WIDTH, HEIGHT, "".join(body), title=tip, desc="estimate and its interval", style="spark")


def ruler(scale: Scale, write: Callable[[float], str]) -> str:
    """The scale itself, for the head of the column."""
    ticks, base = scale.ticks(4), HEIGHT - 1
    body = [line(8, base, WIDTH - 8, base, "axis")]
    for value in ticks:
        body.append(line(scale(value), base, scale(value), base - 4, "axis"))
        body.append(text(min(max(scale(value), 14), WIDTH - 14), base - 7, write(value), anchor="middle", style="tick"))
    ends = " to ".join(write(value) for value in ticks[:: max(1, len(ticks) - 1)])
    return sheet(WIDTH, HEIGHT, "".join(body), title="scale of the column", desc=ends, style="spark")
