"""The sheet a chart is drawn on: SVG with a title and a description, and a frame with quiet axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from limbeck.report.charts.scale import Scale
from limbeck.report.markup import esc

Write = Callable[[float], str]


def at(value: float) -> str:
    """A coordinate with one decimal: a tenth of a pixel is finer than eyes."""
    return f"{value:.1f}".removesuffix(".0")


def sheet(width: float, height: float, body: str, *, title: str, desc: str, style: str = "chart") -> str:
    """A drawing with its title and description for those who cannot see it."""
    return (
        f'<svg class="{style}" viewBox="0 0 {at(width)} {at(height)}" role="img" style="--w:{at(width)}px">'
        f"<title>{esc(title)}</title><desc>{esc(desc)}</desc>{body}</svg>"
    )


def text(x: float, y: float, value: object, *, anchor: str = "start", style: str = "") -> str:
    """A piece of text at its baseline; ``anchor`` is start, middle or end."""
    ends = "" if anchor == "start" else f' text-anchor="{anchor}"'
    kind = f' class="{style}"' if style else ""
    return f'<text x="{at(x)}" y="{at(y)}"{ends}{kind}>{esc(value)}</text>'


def short(name: str, longest: int = 14) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{at(x1)}" y1="{at(y1)}" x2="{at(x2)}" y2="{at(y2)}"/>'


def path(points: Iterable[tuple[float, float]], style: str, *, close: bool = False) -> str:
    """A line through points."""
    d = "L".join(f"{at(x)} {at(y)}" for x, y in points)
    return f'<path class="{style}" d="M{d}{"Z" if close else ""}"/>' if d else ""


def mark(x: float, y: float, role: str, tip: str = "", radius: float = 4.5, style: str = "") -> str:
    """The mark of a role, which differs in shape as well as in colour: student ●, teacher ■, control ◆."""
    note = f"<title>{esc(tip)}</title>" if tip else ""
    kind = f'class="mark {role} {style}"' if style else f'class="mark {role}"'
    if role == "teacher":
        a = radius * 0.88
        return f'<rect {kind} x="{at(x - a)}" y="{at(y - a)}" width="{at(2 * a)}" height="{at(2 * a)}">{note}</rect>'
    if role == "control":
        r = at(radius * 1.2)
        return f'<path {kind} d="M{at(x)} {at(y - radius * 1.2)}l{r} {r}l-{r} {r}l-{r}-{r}Z">{note}</path>'
    return f'<circle {kind} cx="{at(x)}" cy="{at(y)}" r="{at(radius)}">{note}</circle>'


@dataclass(frozen=True)
class Frame:
    """Where the data lie on a panel, with a scale each way."""

    x: Scale
    y: Scale
    width: float
    height: float

    def axes(
        self,
        *,
        x_write: Write,
        y_write: Write,
        x_label: str = "",
        y_label: str = "",
        x_ticks: int = 4,
        y_ticks: int = 4,
    ) -> str:
        """A rule below, faint lines across, numbers outside, and the names of both axes written level."""
        left, right, bottom, top = self.x.start, self.x.end, self.y.start, self.y.end
        parts = []
        for value in self.y.ticks(y_ticks):
            y = self.y(value)
            parts += [
                line(left, y, right, y, "grid"),
                text(left - 6, y + 3.5, y_write(value), anchor="end", style="tick"),
            ]
        for value in self.x.ticks(x_ticks):
            x = self.x(value)
            parts += [
                line(x, bottom, x, bottom + 4, "axis"),
                text(x, bottom + 16, x_write(value), anchor="middle", style="tick"),
            ]
        parts.append(line(left, bottom, right, bottom, "axis"))
        if y_label:
            parts.append(text(0, top - 18, y_label, style="label"))
        if x_label:
            parts.append(text(right, bottom + 31, x_label, anchor="end", style="label"))
        return "".join(parts)


def hover(frame: Frame, stops: list[tuple[float, list[float], str]]) -> str:
    """Bands over a chart: pointing at one shows its rule, its points and its numbers. ``stops``: x, ys, what to say."""
    places = [frame.x(x) for x, _, _ in stops]
    middles = [(a + b) / 2 for a, b in pairwise(places)]
    edges = [frame.x.start, *middles, frame.x.end]
    top, bottom = frame.y.end, frame.y.start
    bands = []
    for place, low, high, (_, values, tip) in zip(places, edges, edges[1:], stops):
        dots = "".join(f'<circle cx="{at(place)}" cy="{at(frame.y(y))}" r="2.6"/>' for y in values)
        bands.append(
            f'<g class="at"><rect x="{at(low)}" y="{at(top)}" width="{at(max(0.1, high - low))}" '
            f'height="{at(bottom - top)}"/><path d="M{at(place)} {at(top)}V{at(bottom)}"/>{dots}'
            f"<title>{esc(tip)}</title></g>"
        )
    return "".join(bands)
