"""Means over seeds, where several runs differ in nothing else that their results name."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.report import numbers
from limbeck.report.folder import RunFolder
from limbeck.report.groups import Group, groups
from limbeck.report.markup import Cell, esc, figure, table, words
from limbeck.report.vocabulary import Word, word

UNKNOWN = Cell(numbers.NONE, key="")


def over_seeds(runs: Sequence[RunFolder]) -> str:
    """One row per method and pair of models: mean ± standard deviation, and the paired t interval to the control."""
    found = groups(runs)
    if len(found) == len(runs):
        return ""
    written = word(runs[0].metric, runs[0].higher_is_better)
    unit = "points" if written.is_share else esc(written.name)
    mean = f"{esc(written.name)}, mean ± sd"
    heads = ["method", "student", "teacher", "seeds", mean, f"{unit} to control", "95 % interval"]
    caption = "Over seeds: mean and standard deviation, and the paired t interval of the difference to the control."
    return figure(table(heads, [_row(group, written) for group in found]), caption, kind="tab", wide=True)


def mean_and_deviation(group: Group, written: Word) -> str:
    """85.2 % ± 1.7, or the mean alone for one run."""
    said = written.write(group.mean)
    return said if group.deviation is None else f"{said} ± {written.size(group.deviation)}"


def _row(group: Group, written: Word) -> list[Cell]:
    gain, bounds = group.gain, UNKNOWN
    if gain is not None and gain.known:
        bounds = Cell(f"{written.difference(gain.low)} to {written.difference(gain.high)}", gain.low)
    elif gain is not None:
        bounds = Cell("one seed, none", "")
    return [
        *map(words, (group.method, group.student, group.teacher)),
        Cell(str(len(group.runs)), len(group.runs)),
        Cell(mean_and_deviation(group, written), "" if group.mean is None else group.mean, style="strong"),
        UNKNOWN if gain is None else Cell(written.difference(gain.mean), gain.mean),
        bounds,
    ]
