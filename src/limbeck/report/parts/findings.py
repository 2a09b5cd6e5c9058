"""What the method itself wants to show, in three plain forms: a heat map, bars, a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from limbeck.report.budget import Budget
from limbeck.report.charts.bars import bars
from limbeck.report.charts.matrix import Square, matrix
from limbeck.report.folder import RunFolder
from limbeck.report.markup import Cell, esc, figure, missing, name, panels, per_run, section, swatches, table
from limbeck.report.numbers import NONE, real
from limbeck.report.vocabulary import unit


def findings(runs: Sequence[RunFolder], budget: Budget) -> str:
    """The section of findings; a method that has none leaves no section."""
    if not any(run.findings for run in runs):
        return ""
    return section("findings", "What the method found", per_run(runs, partial(_of, budget=budget)))


def _of(run: RunFolder, budget: Budget) -> str:
    if not run.findings:
        return missing("The method of this run has no findings of its own.")
    return "".join(_block(block, budget) for block in run.findings)


def _block(block: dict[str, Any], budget: Budget) -> str:
    """One finding; rows and columns that its values do not fill are cut, a kind that is not known is a table."""
    values = [row if isinstance(row, list) else [row] for row in block.get("values") or []]
    rows = [str(row) for row in block.get("rows") or range(1, len(values) + 1)][: len(values)]
    width = max((len(row) for row in values), default=0)
    columns = [str(column) for column in block.get("columns") or range(1, width + 1)][:width]
    values = values[: len(rows)]
    title = str(block.get("title") or "Finding")
    caption = f"<strong>{esc(title, 200)}.</strong> {esc(block.get('text') or '', 1000)}"
    if not values or not columns:
        return missing(f"{title}: this finding holds no values.")
    draw = {"heatmap": _heatmap, "bars": _bars}.get(str(block.get("kind")), _table)
    too_many = len(rows) * len(columns) > budget.cells
    shown = _table if too_many or not _numeric(values) else draw
    if too_many:
        rows, values = rows[: max(1, budget.cells // len(columns))], values[: max(1, budget.cells // len(columns))]
    content = shown(title, rows, columns, values, str(block.get("unit") or "")[:20])
    return figure(content, caption, kind="tab" if shown is _table else "figure")


def _heatmap(title: str, rows: list[str], columns: list[str], values: list[list[Any]], unit_name: str) -> str:
    write = unit(unit_name)
    cells = [(i, j, real(value)) for i, row in enumerate(values) for j, value in enumerate(row[: len(columns)])]
    largest = max((abs(value) for *_, value in cells if value is not None), default=0.0) or 1.0
    squares = [
        Square(i, j, value / largest, write(value).replace("\u202f%", ""), f"{rows[i]}, {columns[j]}: {write(value)}")
        for i, j, value in cells
        if value is not None
    ]
    return panels(
        matrix(rows, columns, squares, title=title, desc=f"{len(rows)} by {len(columns)} values", widest=96, tallest=26)
    )


def _bars(title: str, rows: list[str], columns: list[str], values: list[list[Any]], unit_name: str) -> str:
    flat = [[real(value) or 0.0 for value in row[: len(columns)]] for row in values]
    styles = ["student"] if len(columns) == 1 else [f"c{j % 8}" for j in range(len(columns))]
    said = "; ".join(f"{row} {unit(unit_name)(line[0])}" for row, line in zip(rows, flat) if line)
    chart = bars(rows, columns, flat, styles, title=title, desc=said, write=unit(unit_name))
    keys = swatches([(esc(name, 60), style) for name, style in zip(columns, styles)]) if len(columns) > 1 else ""
    return panels(chart) + keys


def _table(title: str, rows: list[str], columns: list[str], values: list[list[Any]], unit_name: str) -> str:
    write = unit(unit_name)

    def cell(value: Any) -> Cell:
        number = real(value)
        if number is not None:
            return Cell(esc(write(number)), number)
        return Cell(
            NONE if value is None else name(value, 60), "" if value is None else str(value), numeric=value is None
        )

    padded = [[*row, *[None] * len(columns)][: len(columns)] for row in values]
    body = [[Cell(name(label, 48), label, numeric=False), *map(cell, row)] for label, row in zip(rows, padded)]
    return table(["", *(name(column, 32) for column in columns)], body)


def _numeric(values: list[list[Any]]) -> bool:
    return all(value is None or real(value) is not None for row in values for value in row)
