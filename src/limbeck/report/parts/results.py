"""What came out: every model's metric with its interval and its cost, and the differences that matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.evaluation.intervals import Interval
from limbeck.report import numbers
from limbeck.report.charts.whiskers import ruler, scale_for, whisker
from limbeck.report.estimates import bounds, difference, interval
from limbeck.report.folder import RunFolder
from limbeck.report.markup import Cell, esc, figure, missing, name, role, section, table
from limbeck.report.parts.figures import all_figures
from limbeck.report.parts.seeds import over_seeds
from limbeck.report.vocabulary import word


def results(runs: Sequence[RunFolder]) -> str:
    """The section of tables; several runs are told apart by their number on the page."""
    if not any(run.roles for run in runs):
        return section("result", "Result", missing("No model was measured, so there is no result to show."))
    return section("result", "Result", models(runs), differences(runs), over_seeds(runs), all_figures(runs))


def models(runs: Sequence[RunFolder]) -> str:
    """Each model with its metric, its interval and what it costs; one that several runs share stands there once."""
    written = word(runs[0].metric, runs[0].higher_is_better)
    shared: dict[tuple, list[int]] = {}
    for i, run in enumerate(runs):
        for who, model in run.roles.items():
            parts = (who, *(str(model.get(key)) for key in ("name", "metric", "parameters", "view")))
            shared.setdefault(parts if who != "student" else (*parts, i), []).append(i)
    order = sorted(shared.items(), key=lambda entry: ("teacher", "student", "control").index(entry[0][0]))
    found = [(where, who, runs[where[0]].roles[who], interval(runs[where[0]], who)) for (who, *_), where in order]
    scale = scale_for([v for *_, model, around in found for v in _all(model.get("metric"), around)])
    rows = []
    for where, who, model, around in found:
        value, (low, high) = numbers.real(model.get("metric")), bounds(around)
        tip = f"{who} {written.write(value)}"
        picture = "" if value is None else whisker(scale, value, low, high, who, tip)
        row = [
            Cell(f"{role(who)} {name(model.get('name') or '', 32)}", who, numeric=False),
            Cell(esc(", ".join(map(str, model.get("view") or [])) or numbers.NONE, 40), numeric=False),
            Cell(written.write(value), _key(value), style="strong"),
            Cell(_range(written.write, around), _key(low)),
            Cell(picture, numeric=False, style="picture"),
            Cell(numbers.count(model.get("parameters")), _key(model.get("parameters"))),
            Cell(numbers.size(model.get("bytes")), _key(model.get("bytes"))),
            Cell(numbers.milliseconds(model.get("latency_ms")), _key(model.get("latency_ms"))),
        ]
        rows.append([_which(where, len(runs)), *row] if len(runs) > 1 else row)
    heads = ["model", "given", esc(written.name), "95 % interval", ruler(scale, written.tick)]
    heads = [*(["run"] if len(runs) > 1 else []), *heads, "parameters", "size", "latency"]
    drawn = "Intervals are percentiles of 2 000 bootstraps over test samples. " if any(a for *_, a in found) else ""
    caption = f"What each model reaches, and what it costs. {drawn}Latency is the median for one sample."
    return figure(table(heads, rows), caption, kind="tab", wide=True)


def differences(runs: Sequence[RunFolder]) -> str:
    """Student minus control and student minus teacher on the same samples, each with its interval and a reading."""
    written = word(runs[0].metric, runs[0].higher_is_better)
    others = ("control", "teacher")
    found = [(i, o, d) for o in others for i, run in enumerate(runs) if (d := difference(run, o)) is not None]
    if not found:
        why = (
            "There is no difference to show: it takes a control or a teacher, and a metric that is a mean over samples."
        )
        return missing(why)
    scale = scale_for([v for *_, gap in found for v in _all(gap.mean, gap)], zero=True)
    rows = []
    for i, other, gap in found:
        tip = f"student minus {other} {written.difference(gap.mean)}"
        row = [
            Cell(f"{role('student')} {numbers.MINUS} {role(other)}", other, numeric=False),
            Cell(written.difference(gap.mean), gap.mean, style="strong"),
            Cell(_range(written.difference, gap), _key(bounds(gap)[0])),
            Cell(whisker(scale, gap.mean, *bounds(gap), "student", tip, zero=True), numeric=False, style="picture"),
            Cell(_reading(gap, runs[0].higher_is_better), _reading(gap, runs[0].higher_is_better), numeric=False),
        ]
        rows.append([_which([i], len(runs)), *row] if len(runs) > 1 else row)
    unit = "points" if written.is_share else esc(written.name)
    heads = ["difference", unit, "95 % interval", ruler(scale, written.tick_difference), "reading"]
    caption = (
        "Differences on the same test samples. Where the interval leaves out zero, it is more than chance would give."
    )
    return figure(table([*(["run"] if len(runs) > 1 else []), *heads], rows), caption, kind="tab")


def _which(where: Sequence[int], of: int) -> Cell:
    """Numbers of runs: 3, or 1–6, or 1, 4."""
    first, last = where[0] + 1, where[-1] + 1
    if len(where) == of:
        return Cell("all", 0, numeric=False)
    run_on = len(where) > 2 and last - first + 1 == len(where)
    return Cell(f"{first}–{last}" if run_on else ", ".join(str(i + 1) for i in where), first, numeric=False)


def _reading(gap: Interval, up: bool) -> str:
    if not gap.known:
        return "no interval"
    if not gap.decided:
        return "could be chance"
    return "better" if (gap.mean > 0) is up else "worse"


def _range(write: Callable[[float], str], around: Interval | None) -> str:
    low, high = bounds(around)
    return numbers.NONE if low is None or high is None else f"{write(low)} to {write(high)}"


def _all(value: object, around: Interval | None) -> list[float]:
    return [v for v in (numbers.real(value), *bounds(around)) if v is not None]


def _key(value: object) -> object:
    return "" if numbers.real(value) is None else value
