"""Parts of one whole: over the steps as a band, or once as a bar."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from limbeck.report.charts.canvas import Frame, at, hover, path, sheet
from limbeck.report.charts.lines import thin
from limbeck.report.charts.scale import Scale, fit
from limbeck.report.markup import esc
from limbeck.report.numbers import count, share


def band(
    names: Sequence[str],
    styles: Sequence[str],
    rows: Sequence[tuple[float, Sequence[float]]],
    *,
    title: str,
    label: str,
    width: float = 344,
    height: float = 118,
) -> str:
    """Shares stacked to 100 per cent over the step; ``rows``: the step, and one value for each name."""
    rows = [(x, values) for x, values in thin(rows, 80) if sum(values) > 0]
    if len(rows) < 2:
        return ""
    frame = Frame(fit([x for x, _ in rows], 46, width - 10, room=0.0), Scale(0, 1, height - 28, 32), width, height)
    ends = [(x, [0.0, *(end / sum(values) for end in accumulate(values))]) for x, values in rows]
    body = []
    for i, style in enumerate(styles):
        upper = [(frame.x(x), frame.y(places[i + 1])) for x, places in ends]
        lower = [(frame.x(x), frame.y(places[i])) for x, places in reversed(ends)]
        body.append(path(upper + lower, f"area {style}", close=True))
    axes = frame.axes(x_write=count, y_write=lambda y: share(y, 0), y_label=label, y_ticks=2)
    parts = ["\n".join(f"{n} {share(b - a, 0)}" for n, a, b in zip(names, places, places[1:])) for _, places in ends]
    stops: list[tuple[float, list[float], str]] = [
        (x, [], f"step {count(x)}\n{said}") for (x, _), said in zip(ends, parts)
    ]
    return sheet(
        width, height, "".join([axes, *body, hover(frame, stops)]), title=title, desc=f"at the end {parts[-1]}"
    )


def whole(parts: Sequence[tuple[str, int, str]], *, title: str, desc: str, width: float = 704) -> str:
    """One bar cut into counts; ``parts``: name, count, style. Names and numbers stand in the legend beside it."""
    total = sum(number for _, number, _ in parts)
    if not total:
        return ""
    scale, body, done = Scale(0, total, 0, width), [], 0
    for name, number, style in parts:
        start, end = scale(done), scale(done + number)
        done += number
        if number:
            body.append(
                f'<g class="tip"><rect class="part {style}" x="{at(start)}" y="0" height="22" '
                f'width="{at(max(1.5, end - start - 1.5))}"/><title>{esc(name)}: {number} of {total}</title></g>'
            )
    return sheet(width, 22, "".join(body), title=title, desc=desc, style="chart strip")
