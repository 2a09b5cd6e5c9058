"""Every figure that was measured, with one line on what it means and which way is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from limbeck.report import numbers
from limbeck.report.folder import RunFolder
from limbeck.report.markup import Cell, esc, figure, missing, name, role, table
from limbeck.report.vocabulary import Word, word


def all_figures(runs: Sequence[RunFolder]) -> str:
    """One table: for one run its models are the columns, for several the students of the runs."""
    if len(runs) == 1:
        sets = {role(who): model.get("figures") or {} for who, model in runs[0].roles.items()}
        caption = "All figures. The arrow says which way is better."
    else:
        sets = {str(i + 1): (run.roles.get("student") or {}).get("figures") or {} for i, run in enumerate(runs)}
        caption = f"All figures of the {role('student')} of each run. The arrow says which way is better."
    known = list(dict.fromkeys(str(key) for figures in sets.values() for key in figures))
    if not known:
        return missing("No further figures were measured.")
    rows = [_row(key, list(sets.values()), runs[0]) for key in known]
    return figure(table(["figure", *sets, ""], rows), caption, kind="tab", wide=True)


def _row(key: str, sets: Sequence[Mapping[str, Any]], run: RunFolder) -> list[Cell]:
    written = _words(key, run)
    better, sign = ("higher is better", "↑") if written.higher_is_better else ("lower is better", "↓")
    way = f'<span class="way" title="{better}">{sign}</span>' if written.meaning else ""
    values = [numbers.real(figures.get(key)) for figures in sets]
    return [
        Cell(f"{name(written.name, 40)} {way}", written.name, numeric=False),
        *(Cell(written.write(value), "" if value is None else value) for value in values),
        Cell(esc(written.meaning), numeric=False, style="meaning"),
    ]


def _words(key: str, run: RunFolder) -> Word:
    """The words for a figure; `without_audio` is the run's metric when that column is taken away."""
    base = word(run.metric, run.higher_is_better)
    column = key.removeprefix("without_")
    if column == key:
        return word(key)
    return replace(base, name=f"{base.name} without {column}", meaning=f"{base.name} with {column} set to zero")
