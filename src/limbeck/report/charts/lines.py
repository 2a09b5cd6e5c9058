"""Curves over steps: raw values faint, their course on top, and what belongs to a moment marked on them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

from limbeck.report.charts.canvas import Frame, at, hover, line, mark, path, sheet, short, text
from limbeck.report.charts.scale import fit
from limbeck.report.numbers import count

Points = list[tuple[float, float]]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Curve:
    """A named line through (step, value); ``style`` is the class that draws it, ``role`` the shape of its marks."""

    name: str
    points: Points
    style: str
    role: str = ""
    marked: bool = False
    chosen: Points = field(default_factory=list)


def curves(
    found: Sequence[Curve],
    *,
    title: str,
    desc: str,
    write: Callable[[float], str],
    tick: Callable[[float], str],
    label: str,
    stages: Sequence[tuple[float, str]] = (),
    width: float = 344,
    height: float = 230,
) -> str:
    """One panel of curves over the step, with a logarithm where values span more than a factor of fifty."""
    values = [y for curve in found for _, y in curve.points]
    if not values:
        return ""
    log = min(values) > 0 and max(values) / min(values) > 50
    steps = fit([x for curve in found for x, _ in curve.points], 46, width - 10, room=0.0)
    frame = Frame(steps, fit(values, height - 36, 30, log=log), width, height)
    body = [frame.axes(x_write=count, y_write=tick, x_label="step", y_label=label + (" (logarithmic)" if log else ""))]
    boundaries = [step for step, _ in stages[1:] if steps.low < step < steps.high]
    body += [line(steps(step), frame.y.start, steps(step), frame.y.end, "stage") for step in boundaries]
    body += [_drawn(curve, frame) for curve in found]
    body += _stage_names(stages, frame) if len(stages) > 1 else []
    body.append(hover(frame, _stops(found, write)))
    return sheet(width, height, "".join(body), title=title, desc=desc)


def _stage_names(stages: Sequence[tuple[float, str]], frame: Frame) -> list[str]:
    """The name of each stage where it begins, cut to its width; a stage too narrow for four letters goes unnamed."""
    ends = [*(frame.x(step) for step, _ in stages[1:]), frame.x.end]
    named = []
    for (step, name), end in zip(stages, ends):
        letters = int((end - frame.x(step) - 6) / 5.2)
        if letters >= 4:
            named.append(text(frame.x(step) + 4, frame.y.end + 4, short(name, letters), style="note"))
    return named


def thin(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows, evenly taken, the first and the last one always."""
    if len(rows) <= most:
        return list(rows)
    stride = (len(rows) - 1) / (most - 1)
    return [rows[round(i * stride)] for i in range(most)]


def smooth(points: Points, width: int) -> Points:
    """Means over windows of ``width`` neighbours, so that a course is seen through the noise of small batches."""
    half, sums = width // 2, [0.0, *accumulate(y for _, y in points)]
    ends = ((max(0, i - half), min(len(points), i + half + 1)) for i in range(len(points)))
    return [(x, (sums[high] - sums[low]) / (high - low)) for (x, _), (low, high) in zip(points, ends)]


def _drawn(curve: Curve, frame: Frame, most: int = 160) -> str:
    noisy = len(curve.points) > 40 and not curve.marked
    parts, course = [], curve.points
    if noisy:
        parts.append(_line(frame, thin(course, most), f"line raw {curve.style}"))
        course = smooth(course, max(3, len(course) // 20))
    parts.append(_line(frame, thin(course, most), f"line {curve.style}"))
    if curve.marked:
        parts += [mark(frame.x(x), frame.y(y), curve.role, radius=2.4) for x, y in thin(course, 60)]
    parts += [f'<circle class="chosen" cx="{at(frame.x(x))}" cy="{at(frame.y(y))}" r="6.5"/>' for x, y in curve.chosen]
    return "".join(parts)


def _line(frame: Frame, points: Points, style: str) -> str:
    return path(((frame.x(x), frame.y(y)) for x, y in points), style)


def _stops(found: Sequence[Curve], write: Callable[[float], str]) -> list[tuple[float, list[float], str]]:
    """Moments to point at: steps of the longest curve, with every curve's value there or last before."""
    longest = max(found, key=lambda curve: len(curve.points))
    stops = []
    for step, _ in thin(longest.points, 60):
        before = ((curve, bisect_right(curve.points, (step, math.inf)) - 1) for curve in found)
        here = [(curve.name, curve.points[i][1]) for curve, i in before if i >= 0]
        said = "\n".join([f"step {count(step)}", *(f"{name} {write(value)}" for name, value in here)])
        stops.append((step, [value for _, value in here], said))
    return stops
