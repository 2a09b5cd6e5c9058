"""What quality costs: the metric against the size on disk and against the time of one answer."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from limbeck.report import numbers
from limbeck.report.charts.scatter import Spot, scatter
from limbeck.report.estimates import bounds, interval
from limbeck.report.folder import RunFolder
from limbeck.report.markup import figure, missing, panels, role, section
from limbeck.report.vocabulary import word

COSTS = (("bytes", "size on disk", numbers.size), ("latency_ms", "time of one answer", numbers.milliseconds))


def tradeoff(runs: Sequence[RunFolder]) -> str:
    """The section with two panels; a cost that was not measured has none."""
    written, charts = word(runs[0].metric, runs[0].higher_is_better), []
    for key, cost, write in COSTS:
        spots = _spots(runs, key, write)
        chart = scatter(
            spots,
            title=f"{written.name} against {cost}",
            desc="; ".join(spot.tip for spot in spots[:12]),
            cost=f"{cost} (logarithmic)",
            quality=written.name,
            write_cost=partial(write, zeros=False),
            write_quality=written.tick,
        )
        charts.append(chart)
    if not any(charts):
        return section("cost", "Quality and cost", missing("Neither size nor latency was measured."))
    better = f"{'Up' if runs[0].higher_is_better else 'Down'} and to the left is better."
    if len(runs) == 1:
        rest = "Whiskers are 95 % intervals over test samples; marks that would hide each other stand side by side."
    else:
        rest = f"{role('student')} with the number of its run, {role('teacher')}, {role('control')}."
    return section("cost", "Quality and cost", figure(panels(*charts), f"{better} {rest}"))


def _spots(runs: Sequence[RunFolder], key: str, write: Callable[[Any], str]) -> list[Spot]:
    """Students first, each its own; a teacher or control that several runs share is one mark at its median cost."""
    groups: dict[tuple, list[tuple[int, RunFolder, float]]] = {}
    for who in ("student", "teacher", "control"):
        for i, run in enumerate(runs):
            model = run.roles.get(who) or {}
            cost, quality = numbers.real(model.get(key)), numbers.real(model.get("metric"))
            if cost is not None and quality is not None:
                same = (who, i) if who == "student" else (who, model.get("name"), quality)
                groups.setdefault(same, []).append((i, run, cost))
    spots = []
    for (who, *_), members in groups.items():
        (i, run, _), cost = members[0], statistics.median(cost for *_, cost in members)
        model, written = run.roles[who], word(run.metric, run.higher_is_better)
        low, high = bounds(interval(run, who)) if len(runs) == 1 else (None, None)
        whose = f"run {i + 1}, {who}" if len(runs) > 1 and who == "student" else who
        tip = f"{whose} {model.get('name') or ''}: {written.name} {written.write(model['metric'])}, {write(cost)}"
        name = who if len(runs) == 1 else ""
        number = str(i + 1) if len(runs) > 1 and who == "student" else ""
        spots.append(Spot(who, cost, model["metric"], low, high, name, number, tip))
    return spots
