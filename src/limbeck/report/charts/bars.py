"""Lengths beside names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.report.charts.canvas import at, line, sheet, short, text
from limbeck.report.charts.scale import Scale
from limbeck.report.markup import esc


def bars(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    styles: Sequence[str],
    *,
    title: str,
    desc: str,
    write: Callable[[float], str],
    width: float = 400,
) -> str:
    """Horizontal bars from zero, one group per row and one bar per column, each with its number at the end."""
    flat = [value for row in values for value in row]
    if not flat:
        return ""
    left = 14 + 6.0 * min(max(len(name) for name in rows), 18)
    thick = 13 if len(columns) == 1 else 12
    pitch = thick * len(columns) + 8
    low, high = min(0.0, *flat), max(0.0, *flat)
    scale = Scale(low, high if high > low else low + 1, left + (48 if low < 0 else 0), width - 54)
    zero, body = scale(0), []
    for i, (name, row) in enumerate(zip(rows, values)):
        top = 6 + i * pitch
        body.append(text(left - 6, top + (pitch - 8) / 2 + 3.5, short(name, 18), anchor="end", style="tick"))
        for j, value in enumerate(row):
            end, y = scale(value), top + j * thick
            which = f"{name}, {columns[j]}" if len(columns) > 1 else name
            body.append(
                f'<g class="tip"><rect class="bar {styles[j % len(styles)]}" x="{at(min(zero, end))}" y="{at(y)}" '
                f'width="{at(max(0.5, abs(end - zero)))}" height="{at(thick - 1)}"/>'
                f"<title>{esc(f'{which}: {write(value)}')}</title></g>"
            )
            away, anchor = (5, "start") if value >= 0 else (-5, "end")
            body.append(text(end + away, y + thick / 2 + 3, write(value), anchor=anchor, style="value"))
    height = 6 + pitch * len(rows)
    body.append(line(zero, 2, zero, height - 4, "axis"))
    return sheet(width, height, "".join(body), title=title, desc=desc)
