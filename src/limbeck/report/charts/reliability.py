"""Confidence against truth: on the diagonal a model is as often right as it says."""

from __future__ import annotations

import math
from collections.abc import Sequence

from limbeck.evaluation.calibration import Bin
from limbeck.report.charts.canvas import Frame, at, line, mark, sheet, text
from limbeck.report.charts.scale import Scale
from limbeck.report.markup import esc
from limbeck.report.numbers import share

FLOOR, DEEP = 200.0, 34.0


def diagram(bins: Sequence[Bin], role: str, *, title: str, desc: str, width: float = 226) -> str:
    """Accuracy per bin of confidence, its distance from the diagonal, and how many samples lie in each bin."""
    filled = [part for part in bins if part.count]
    if not filled:
        return ""
    most, height = max(part.count for part in filled), FLOOR + DEEP + 34
    frame = Frame(Scale(0, 1, 36, width - 8), Scale(0, 1, FLOOR - 8, 30), width, height)
    body = [frame.axes(x_write=lambda x: "", y_write=lambda y: share(y, 0), y_label="right", x_ticks=2)]
    body.append(line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "diagonal"))
    for part in filled:
        x = frame.x(part.confidence)
        body.append(line(x, frame.y(part.confidence), x, frame.y(part.accuracy), f"miss {role}"))
    for part in filled:
        tip = f"{part.count} samples, {share(part.confidence)} sure, {share(part.accuracy)} right"
        radius = 2.4 + 2.8 * math.sqrt(part.count / most)
        body.append(mark(frame.x(part.confidence), frame.y(part.accuracy), role, tip, radius=radius))
        left, right = frame.x(part.low), frame.x(part.high)
        body.append(
            f'<g class="tip"><rect class="bar {role}" x="{at(left + 0.6)}" y="{at(FLOOR)}" '
            f'width="{at(right - left - 1.2)}" height="{at(max(0.8, DEEP * part.count / most))}"/>'
            f"<title>{esc(tip)}</title></g>"
        )
    for value in (0.0, 0.5, 1.0):
        body.append(text(frame.x(value), FLOOR + DEEP + 14, share(value, 0), anchor="middle", style="tick"))
    body.append(text(frame.x.end, FLOOR + DEEP + 30, "sure", anchor="end", style="label"))
    return sheet(width, height, "".join(body), title=title, desc=desc)
