"""The tables of a comparison: for reading, for papers, for the terminal. All say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from limbeck.comparing.figures import BASES
from limbeck.report import markup, numbers
from limbeck.report.markup import Cell, esc, figure, prose, table, words
from limbeck.report.vocabulary import Word, word

RANKS = ["", "mean rank"]


@dataclass
class Grid:
    """A table as text: heads, rows, and sentences below it."""

    title: str
    heads: list[str]
    rows: list[list[str]]
    below: list[str] = field(default_factory=list)


def grids(result: Mapping[str, Any]) -> list[Grid]:
    """One table per problem, and over several problems one of mean ranks."""
    found = [_problem(problem) for problem in result["problems"]]
    if result["ranks"]:
        rows = [[row["arm"], f"{row['rank']:.2f}"] for row in result["ranks"]]
        found.append(Grid(f"mean rank over {len(result['problems'])} problems, 1 is best", RANKS, rows))
    return found


def _problem(problem: Mapping[str, Any]) -> Grid:
    arms = problem["arms"]
    written = word(problem["metric"] or "metric", problem["higher_is_better"] is not False)
    columns: list[tuple[str, list[str]]] = [
        ("", [row["arm"] for row in arms]),
        (written.name, [_spread(row, written) for row in arms]),
        ("seeds", [_seeds(row) for row in arms]),
    ]
    for base in BASES:
        for over in ("seeds", "samples"):
            cells = [_interval((row["differences"].get(base) or {}).get(over), written) for row in arms]
            columns.append((f"minus {base}, 95 % over {over}", cells))
    columns += [
        ("rank", ["" if row["rank"] is None else f"{row['rank']:g}" for row in arms]),
        ("time", [numbers.duration(row["cost"]["seconds"]) for row in arms]),
        ("steps", [numbers.count(row["cost"]["steps"]) for row in arms]),
        ("trials", [str(row["cost"]["trials"] or "") for row in arms]),
    ]
    shown = [column for column in columns if any(column[1])]
    unit = " Differences of shares are in percentage points." if written.is_share else ""
    said = [f"Means ± standard deviation over seeds on {problem['split'] or 'test'}; time and steps of one run.{unit}"]
    failures: dict[str, list[str]] = {}
    for failed in (failed for row in arms for failed in row["failed"]):
        failures.setdefault(failed["reason"], []).append(failed["run"])
    said += [f"{', '.join(runs)} failed: {reason}" for reason, runs in failures.items()]
    said += [f"{row['arm']} was tuned to {_settings(row['tuned'])}" for row in arms if row["tuned"]]
    return Grid(problem["name"], [head for head, _ in shown], [list(row) for row in zip(*(c for _, c in shown))], said)


def _spread(row: Mapping[str, Any], written: Word) -> str:
    if row["mean"] is None:
        return "failed" if len(row["failed"]) == row["planned"] else ""
    said = written.write(row["mean"])
    return said if row["sd"] is None else f"{said} ± {written.size(row['sd'])}"


def _seeds(row: Mapping[str, Any]) -> str:
    return str(row["finished"]) if row["finished"] == row["planned"] else f"{row['finished']} of {row['planned']}"


def _interval(difference: Mapping[str, Any] | None, written: Word) -> str:
    if difference is None:
        return ""
    said = written.difference(difference["mean"])
    if difference["low"] is None:
        return said
    return f"{said} [{written.difference(difference['low'])}, {written.difference(difference['high'])}]"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The tables as Markdown, with columns that stand under each other."""
    parts = []
    for grid in grids(result):
        cells = [
            [cell.replace("|", "\\|").replace(numbers.THIN, " ") for cell in row] for row in [grid.heads, *grid.rows]
        ]
        widths = [max(3, *map(len, column)) for column in zip(*cells)]
        lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |" for row in cells]
        rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
        title = [f"### {grid.title}", ""] if grid.title else []
        parts.append(
            "\n".join([*title, lines[0], rule, *lines[1:], *(f"\n{' '.join(said.split())}" for said in grid.below)])
        )
    return "\n\n".join(parts) + "\n"


_TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    numbers.MINUS: "$-$",
    numbers.THIN: r"\,",
    "×": r"$\times$",
    "–": "--",
    "²": "$^2$",
    "’": "'",
    "<": "$<$",
    ">": "$>$",
}


def latex(result: Mapping[str, Any]) -> str:
    """The tables as `tabular`s that need no package."""
    parts = []
    for grid in grids(result):
        rows = [" & ".join(map(_tex, row)) + r" \\" for row in [grid.heads, *grid.rows]]
        notes = [f"% {' '.join(said.split())}" for said in [grid.title, *grid.below] if said]
        begin = rf"\begin{{tabular}}{{l{'r' * (len(grid.heads) - 1)}}}"
        parts.append("\n".join([*notes, begin, r"\hline", rows[0], r"\hline", *rows[1:], r"\hline", r"\end{tabular}"]))
    return "\n\n".join(parts) + "\n"


def _tex(cell: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in cell)


def section(result: Mapping[str, Any], problem: str) -> str:
    """The table of one problem, and the mean ranks, as a section of the report."""
    shown = [grid for grid in grids(result) if grid.title == problem or grid.heads == RANKS]
    drawn = []
    for grid in shown:
        rows = [
            [words(row[0]), *(Cell(esc(cell), style="strong" if i == 0 else "") for i, cell in enumerate(row[1:]))]
            for row in grid.rows
        ]
        caption, *more = [esc(said, 2000) for said in grid.below] or [esc(grid.title)]
        heads = [esc(head) for head in grid.heads]
        drawn.append(figure(table(heads, rows, sortable=False), caption, kind="tab", wide=True))
        drawn += [prose(f"{said.rstrip('.')}.") for said in more]
    return markup.section("arms", "Arms compared", *drawn)


def terminal(result: Mapping[str, Any]) -> Group:
    """The tables for a terminal."""
    shown: list[Any] = []
    for grid in grids(result):
        drawn = Table(title=grid.title or None, title_justify="left", title_style="", box=None, pad_edge=False)
        for i, head in enumerate(grid.heads):
            drawn.add_column(head, justify="right" if i else "left", header_style="dim", overflow="fold")
        for row in grid.rows:
            drawn.add_row(*(Text(cell.replace(numbers.THIN, " ")) for cell in row))
        shown += [drawn, *(Text(said.replace(numbers.THIN, " "), style="dim") for said in grid.below), Text("")]
    return Group(*shown)
