"""Points in the plane: clouds of samples, and ways from one place to another, with one scale for both directions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from limbeck.report.charts.canvas import Frame, at, path, sheet
from limbeck.report.charts.scale import Scale
from limbeck.report.markup import esc
from limbeck.report.numbers import plain

Point = tuple[float, float]
SHAPES = 4
SIZE = 2.0  # half of a mark's width in pixels


@dataclass(frozen=True)
class Window:
    """The part of the plane that panels share, `low` to `high` in either direction; a unit is as long upwards as it is across."""

    low: Point
    high: Point

    @classmethod
    def around(cls, core: Iterable[Point], further: Iterable[Point] = ()) -> Window:
        """All of `core`, and of the others what is no further away than the core is wide: one stray point widens no panel much."""
        known = [p for p in core if _finite(p)] or [(0.0, 0.0)]
        low, high = _ends(known)
        wide = max(b - a for a, b in zip(low, high)) or 1.0
        near = (p for p in further if _finite(p) and all(a - wide <= v <= b + wide for v, a, b in zip(p, low, high)))
        low, high = _ends([*known, *near])
        sides = [b - a for a, b in zip(low, high)]
        sides = [1.1 * max(side, 0.5 * max(sides)) or 1.0 for side in sides]  # never so flat that nothing is seen
        middle = [(a + b) / 2 for a, b in zip(low, high)]
        (x, y), (w, h) = middle, sides
        return cls((x - w / 2, y - h / 2), (x + w / 2, y + h / 2))

    def frame(self, width: float, tallest: float = 1.15) -> Frame:
        """A panel of this width, and no more than `tallest` times as high."""
        (left, down), (right, up), room = self.low, self.high, width - 50
        side = room * (up - down) / (right - left)
        if side > tallest * room:  # then it is wider than its points are
            more, side = (up - down) / tallest - (right - left), tallest * room
            left, right = left - more / 2, right + more / 2
        return Frame(Scale(left, right, 40, width - 10), Scale(down, up, 12 + side, 12), width, side + 36)

    def outside(self, points: Iterable[Point]) -> int:
        """How many points lie beyond the panel, so that they are drawn at its edge."""
        return sum(not all(a <= v <= b for v, a, b in zip(p, self.low, self.high)) for p in points)


def _ends(points: Sequence[Point]) -> tuple[Point, Point]:
    (xs, ys) = zip(*points)
    return (min(xs), min(ys)), (max(xs), max(ys))


@dataclass(frozen=True)
class Cloud:
    """Points of one kind: the class that colours them, and the number of the shape that they have."""

    name: str
    points: Sequence[Point]
    style: str
    shape: int = 0


@dataclass(frozen=True)
class Way:
    """A line through places, with what to say of each."""

    points: Sequence[Point]
    tips: Sequence[str]
    style: str


def clouds(found: Sequence[Cloud], window: Window, *, title: str, desc: str, width: float = 250) -> str:
    """One panel of points."""
    frame = window.frame(width)
    body = [_axes(frame), *(_dots(cloud, frame) for cloud in found)]
    return sheet(width, frame.height, "".join(body), title=title, desc=desc)


def ways(
    found: Sequence[Way], behind: Sequence[Point], window: Window, *, title: str, desc: str, width: float = 400
) -> str:
    """One panel of lines: a ring where each begins, a dot at every step, a larger one where it ends; faint points behind them."""
    frame = window.frame(width)
    body = [_axes(frame), _dots(Cloud("", behind, "behind"), frame)]
    for way in found:
        places = [(frame.x(x), frame.y(y)) for x, y in way.points if _finite((x, y))]
        body.append(path(places, f"line {way.style}") if len(places) > 1 else "")
        for i, ((x, y), tip) in enumerate(zip(places, way.tips)):
            ends = i == len(places) - 1
            kind = f"mark {way.style}" if ends or i else f"mark begin {way.style}"
            radius = 4.2 if ends else 3.4 if i == 0 else 1.7
            body.append(
                f'<circle class="{kind}" cx="{at(x)}" cy="{at(y)}" r="{at(radius)}"><title>{esc(tip)}</title></circle>'
            )
    return sheet(width, frame.height, "".join(body), title=title, desc=desc)


def key(style: str, shape: int) -> str:
    """The mark of a cloud, for a legend."""
    mark = f'<path class="dots {style}" d="{_shape(5, 5, shape, 3.2)}"/>'
    return f'<svg class="dot" viewBox="0 0 10 10" aria-hidden="true">{mark}</svg>'


def _axes(frame: Frame) -> str:
    return frame.axes(x_write=plain, y_write=plain, x_ticks=4, y_ticks=4)


def _dots(cloud: Cloud, frame: Frame) -> str:
    finite = (p for p in cloud.points if _finite(p))
    d = "".join(_shape(frame.x(x), frame.y(y), cloud.shape, SIZE) for x, y in finite)
    return f'<path class="dots {cloud.style}" d="{d}"/>' if d else ""


def _shape(x: float, y: float, number: int, r: float) -> str:
    """A mark around a place as a piece of a path: a circle, a square, a triangle, a diamond."""
    if number % SHAPES == 0:
        a, b = at(r), at(2 * r)
        return f"M{at(x - r)} {at(y)}a{a} {a} 0 1 0 {b} 0a{a} {a} 0 1 0-{b} 0"
    if number % SHAPES == 1:
        a = at(1.8 * r)
        return f"M{at(x - 0.9 * r)} {at(y - 0.9 * r)}h{a}v{a}h-{a}z"
    if number % SHAPES == 2:
        return f"M{at(x)} {at(y - 1.2 * r)}l{at(1.1 * r)} {at(2 * r)}h-{at(2.2 * r)}z"
    a = at(1.25 * r)
    return f"M{at(x)} {at(y - 1.25 * r)}l{a} {a}l-{a} {a}l-{a}-{a}z"


def _finite(point: Point) -> bool:
    return all(map(math.isfinite, point))
