"""What a model gives against what it costs: one mark per model, named beside it or numbered inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.report.charts.canvas import Frame, line, mark, sheet, text
from limbeck.report.charts.scale import fit, spread


@dataclass(frozen=True)
class Spot:
    """A model: its role, its cost and quality, the interval of the quality if one is drawn, and what to call it."""

    role: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None
    name: str = ""
    number: str = ""
    tip: str = ""


def scatter(
    spots: Sequence[Spot],
    *,
    title: str,
    desc: str,
    cost: str,
    quality: str,
    write_cost: Callable[[float], str],
    write_quality: Callable[[float], str],
    width: float = 344,
    height: float = 250,
) -> str:
    """Quality upwards, cost to the right by logarithm (what halves a cost is one step, wherever it starts)."""
    spots = [spot for spot in spots if spot.cost > 0]
    if not spots:
        return ""
    heights = [value for spot in spots for value in (spot.quality, spot.low, spot.high) if value is not None]
    costs = [spot.cost for spot in spots]
    across = fit(costs, 46, width - 10, log=True, room=0.35 if max(costs) > 1.5 * min(costs) else 0.1)
    frame = Frame(across, fit(heights, height - 42, 30, room=0.1), width, height)
    body = [frame.axes(x_write=write_cost, y_write=write_quality, x_label=cost, y_label=quality)]
    places = apart([_extent(spot, frame) for spot in spots], 11 if any(spot.name for spot in spots) else 14)
    for spot, x in zip(spots, places):
        if spot.low is not None and spot.high is not None:
            body.append(line(x, frame.y(spot.low), x, frame.y(spot.high), f"whisker {spot.role}"))
    for spot, x in zip(spots, places):
        y = frame.y(spot.quality)
        body.append(mark(x, y, spot.role, spot.tip, radius=7.5 if spot.number else 6))
        if spot.number:
            body.append(text(x, y + 3.4, spot.number, anchor="middle", style="inside"))
    return sheet(width, height, "".join([*body, *_names(spots, places, frame)]), title=title, desc=desc)


def apart(extents: Sequence[tuple[float, float, float]], gap: float) -> list[float]:
    """Places across for marks of (place, top, bottom): the first keeps its own, later ones step aside where they meet."""
    placed: list[tuple[float, float, float]] = []
    for place, top, bottom in extents:
        steps = [gap * k * sign for k in range(len(extents)) for sign in (1, -1)]
        free = (
            place + step
            for step in steps
            if not any(abs(place + step - x) < gap and top < low and high < bottom for x, high, low in placed)
        )
        placed.append((next(free, place), top, bottom))
    return [x for x, _, _ in placed]


def _extent(spot: Spot, frame: Frame) -> tuple[float, float, float]:
    y, radius = frame.y(spot.quality), 7.0
    top = y - radius if spot.high is None else min(y - radius, frame.y(spot.high))
    return frame.x(spot.cost), top, y + radius if spot.low is None else max(y + radius, frame.y(spot.low))


def _names(spots: Sequence[Spot], places: Sequence[float], frame: Frame) -> list[str]:
    """Names on the side where there is room, none on top of another."""
    middle, parts = (frame.x.start + frame.x.end) / 2, []
    for left in (True, False):
        here = [(spot, x) for spot, x in zip(spots, places) if (x <= middle) is left and spot.name]
        rows = spread([frame.y(spot.quality) for spot, _ in here], 14, frame.y.end + 4, frame.y.start - 4)
        edge = max((x for _, x in here), default=0.0) if left else min((x for _, x in here), default=0.0)
        for (spot, x), row in zip(here, rows):
            near = edge if abs(edge - x) < 30 else x
            away, anchor = (12, "start") if left else (-12, "end")
            parts.append(text(near + away, row + 4, spot.name, anchor=anchor, style=f"name {spot.role}"))
    return parts
