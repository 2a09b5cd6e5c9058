"""Means over seeds, where several runs differ in nothing else that their results name."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from limbeck.evaluation.intervals import paired_t
from limbeck.report import numbers
from limbeck.report.estimates import difference
from limbeck.report.folder import RunFolder
from limbeck.report.markup import Cell, esc, figure, table, words
from limbeck.report.vocabulary import word

UNKNOWN = Cell(numbers.NONE, key="")


def over_seeds(runs: Sequence[RunFolder]) -> str:
    """One row per method and pair of models: mean ± standard deviation, and the paired t interval to the control."""
    groups: dict[tuple[str, str, str], list[RunFolder]] = {}
    for run in runs:
        student, teacher = run.roles.get("student") or {}, run.roles.get("teacher") or {}
        key = (str(run.result.get("method")), str(student.get("name")), str(teacher.get("name")))
        groups.setdefault(key, []).append(run)
    if len(groups) == len(runs):
        return ""
    written = word(runs[0].metric, runs[0].higher_is_better)
    unit = "points" if written.is_share else esc(written.name)
    heads = [
        "method",
        "student",
        "teacher",
        "seeds",
        f"{esc(written.name)}, mean ± sd",
        f"{unit} to control",
        "95 % interval",
    ]
    rows = [[*map(words, key), *_row(members)] for key, members in groups.items()]
    caption = "Over seeds: mean and standard deviation, and the paired t interval of the difference to the control."
    return figure(table(heads, rows), caption, kind="tab", wide=True)


def _row(members: Sequence[RunFolder]) -> list[Cell]:
    written = word(members[0].metric, members[0].higher_is_better)
    metrics = [numbers.real((run.roles.get("student") or {}).get("metric")) for run in members]
    known = [metric for metric in metrics if metric is not None]
    gaps = [gap.mean for run in members if (gap := difference(run, "control")) is not None]
    said = written.write(statistics.fmean(known)) if known else numbers.NONE
    if len(known) > 1:
        said += f" ± {written.size(statistics.stdev(known))}"
    over = paired_t(gaps) if gaps else None
    bounds = UNKNOWN
    if over is not None:
        ends = f"{written.difference(over.low)} to {written.difference(over.high)}"
        bounds = Cell(ends if over.known else "one seed, none", over.low if over.known else "")
    return [
        Cell(str(len(members)), len(members)),
        Cell(said, statistics.fmean(known) if known else "", style="strong"),
        Cell(written.difference(over.mean), over.mean) if over is not None else UNKNOWN,
        bounds,
    ]
