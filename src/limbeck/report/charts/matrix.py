"""Numbers in a grid, the deeper the larger: confusion matrices and a method's heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.report.charts.canvas import at, sheet, text
from limbeck.report.markup import esc

LETTER = 6.0  # width of a letter in pixels, on average


@dataclass(frozen=True)
class Square:
    """One cell: its place, how deep (-1 to 1; below zero in the other colour), what is written in it and on hover."""

    row: int
    column: int
    depth: float
    inside: str
    tip: str


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    squares: Sequence[Square],
    *,
    title: str,
    desc: str,
    style: str = "student",
    row_label: str = "",
    column_label: str = "",
    width: float = 420,
    largest: float = 52,
) -> str:
    """A grid with names on the left and on top; numbers are written inside where there is room for them."""
    left = 10 + LETTER * min(14, max((len(name) for name in rows), default=1)) + (14 if row_label else 0)
    names = LETTER * min(14, max((len(name) for name in columns), default=1))
    cell = min((width - left - 2) / max(1, len(columns)), largest)
    turned = names > cell - 2
    if turned:  # the last name leans out to the right
        cell = min((width - left - 2 - 0.6 * names) / max(1, len(columns)), largest)
    top = (22 if column_label else 6) + (0.72 * names + 12 if turned else 14)
    across, down = cell * len(columns), cell * len(rows)
    body = []
    if row_label:
        turn = f"translate(10 {at(top + down / 2)})rotate(-90)"
        body.append(f'<g transform="{turn}">{text(0, 0, row_label, anchor="middle", style="label")}</g>')
    if column_label:
        body.append(text(left + across / 2, 11, column_label, anchor="middle", style="label"))
    every = 1 if cell >= 11 else math.ceil(11 / cell)
    for i, name in list(enumerate(rows))[::every]:
        body.append(text(left - 6, top + cell * (i + 0.5) + 3.5, short(name), anchor="end", style="tick"))
    for j, name in list(enumerate(columns))[:: math.ceil(14 / cell) if turned else 1]:
        x, y = left + cell * (j + 0.5), top - 6
        if turned:
            slanted = text(0, 0, short(name), style="tick")
            body.append(f'<g transform="translate({at(x + 3)} {at(y)})rotate(-46)">{slanted}</g>')
        else:
            body.append(text(x, y, short(name), anchor="middle", style="tick"))
    edge = f'width="{at(across)}" height="{at(down)}"'
    body.append(f'<rect class="sheet" x="{at(left)}" y="{at(top)}" {edge}/>')
    body += [_square(square, left + cell * square.column, top + cell * square.row, cell, style) for square in squares]
    return sheet(width, top + down + 2, "".join(body), title=title, desc=desc, style="chart grid-chart")


def confusion_squares(
    counts: Sequence[Sequence[int]], names: Sequence[str], who: str, *, most: int, write: Callable[[float], str]
) -> list[Square]:
    """Cells of a confusion matrix: rows are the truth; depth is the root of the row's share, so that errors show."""
    squares = []
    for i, row in enumerate(counts):
        total = sum(row)
        for j, number in enumerate(row):
            if number:
                said = f"{names[i]} called {names[j]}" if i != j else f"{names[i]} found"
                tip = f"{who}: {said}, {number} of {total} ({write(number / total)})"
                squares.append(Square(i, j, math.sqrt(number / total), str(number), tip))
    return sorted(squares, key=lambda square: -square.depth)[:most]


def short(name: str, longest: int = 14) -> str:
    """A name that fits beside a chart."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def _square(square: Square, x: float, y: float, cell: float, style: str) -> str:
    opacity, gap = 0.9 * min(1.0, abs(square.depth)), 1.0 if cell > 6 else 0.0
    side = at(cell - gap)
    kind = "teacher" if square.depth < 0 else style
    shape = (
        f'<rect class="cell {kind}" x="{at(x + gap / 2)}" y="{at(y + gap / 2)}" width="{side}" height="{side}" '
        f'fill-opacity="{opacity:.2f}"/>'
    )
    inside = ""
    if square.inside and cell >= 18 and LETTER * len(square.inside) <= cell - 2:
        tone = "on" if opacity > 0.52 else "off"
        inside = text(x + cell / 2, y + cell / 2 + 3.6, square.inside, anchor="middle", style=f"count {tone}")
    return f'<g class="tip">{shape}{inside}<title>{esc(square.tip)}</title></g>'
