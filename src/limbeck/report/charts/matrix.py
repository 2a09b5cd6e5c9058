"""Numbers in a grid, the deeper the larger: confusion matrices and a method's heat maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from limbeck.report.charts.canvas import at, sheet, short, text
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
    widest: float = 52,
    tallest: float = 52,
) -> str:
    """A grid with names on the left and on top; numbers are written inside where there is room for them."""
    left = 10 + LETTER * min(18, max((len(name) for name in rows), default=1)) + (14 if row_label else 0)
    names = LETTER * min(14, max((len(name) for name in columns), default=1))
    across = min((width - left - 2) / max(1, len(columns)), widest)
    turned = names > across - 2
    if turned:  # the last name leans out to the right
        across = min((width - left - 2 - 0.6 * names) / max(1, len(columns)), widest)
    down = min(across if widest == tallest else tallest, tallest)
    top = (22 if column_label else 6) + (0.72 * names + 12 if turned else 14)
    right, bottom = left + across * len(columns), top + down * len(rows)
    body = []
    if row_label:
        turn = f"translate(10 {at((top + bottom) / 2)})rotate(-90)"
        body.append(f'<g transform="{turn}">{text(0, 0, row_label, anchor="middle", style="label")}</g>')
    if column_label:
        body.append(text((left + right) / 2, 11, column_label, anchor="middle", style="label"))
    for i, name in list(enumerate(rows))[:: math.ceil(11 / down)]:
        body.append(text(left - 6, top + down * (i + 0.5) + 3.5, short(name, 18), anchor="end", style="tick"))
    for j, name in list(enumerate(columns))[:: math.ceil(14 / across) if turned else 1]:
        x, y = left + across * (j + 0.5), top - 6
        if turned:
            slanted = text(0, 0, short(name), style="tick")
            body.append(f'<g transform="translate({at(x + 3)} {at(y)})rotate(-46)">{slanted}</g>')
        else:
            body.append(text(x, y, short(name, max(14, int(across / LETTER))), anchor="middle", style="tick"))
    edge = f'width="{at(right - left)}" height="{at(bottom - top)}"'
    body.append(f'<rect class="sheet" x="{at(left)}" y="{at(top)}" {edge}/>')
    for square in squares:
        body.append(_square(square, left + across * square.column, top + down * square.row, across, down, style))
    return sheet(width, bottom + 2, "".join(body), title=title, desc=desc, style="chart grid-chart")


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


def _square(square: Square, x: float, y: float, across: float, down: float, style: str) -> str:
    opacity, gap = 0.9 * min(1.0, abs(square.depth)), 1.0 if min(across, down) > 6 else 0.0
    kind = "teacher" if square.depth < 0 else style
    shape = (
        f'<rect class="cell {kind}" x="{at(x + gap / 2)}" y="{at(y + gap / 2)}" width="{at(across - gap)}" '
        f'height="{at(down - gap)}" fill-opacity="{opacity:.2f}"/>'
    )
    inside = ""
    if square.inside and down >= 18 and LETTER * len(square.inside) <= across - 2:
        tone = "on" if opacity > 0.52 else "off"
        inside = text(x + across / 2, y + down / 2 + 3.6, square.inside, anchor="middle", style=f"count {tone}")
    return f'<g class="tip">{shape}{inside}<title>{esc(square.tip)}</title></g>'
