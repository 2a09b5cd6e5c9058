"""The result as a table for a terminal: one row per model, wide enough for what matters and no wider."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from limbeck.report import numbers
from limbeck.report.vocabulary import Word, word


@dataclass(frozen=True)
class Row:
    """A model: its metric (mean and, over seeds, standard deviation) and its cost. What is None is not known.

    ``latency_ms`` is in milliseconds, ``bytes`` on disk; a ``reference`` (a teacher) is there to be compared with and
    is set back. ``measure`` names the metric.
    """

    name: str
    metric: float | None
    deviation: float | None = None
    parameters: int | None = None
    latency_ms: float | None = None
    bytes: int | None = None
    reference: bool = False
    measure: str = "accuracy"


def result_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Teacher, control and student of each ``result.json``, under the run's name if there are several."""
    rows = []
    for result in results:
        for role in ("teacher", "control", "student"):
            model = result.get(role)
            if not model:
                continue
            called = f"{role}, {model['name']}" if model.get("name") else role
            name = f"{result.get('name', '')}: {called}" if len(results) > 1 else called
            row = Row(
                name,
                numbers.real(model.get("metric")),
                parameters=model.get("parameters"),
                latency_ms=model.get("latency_ms"),
                bytes=model.get("bytes"),
                reference=role == "teacher",
                measure=str((result.get("task") or {}).get("metric") or "accuracy"),
            )
            rows.append(row)
    return rows


def table(rows: Sequence[Row], *, metric: str | None = None, title: str | None = None) -> Table:
    """A table of rows: name, metric ± standard deviation, parameters, latency, size; a column nobody fills is left out."""
    written = word(metric or (rows[0].measure if rows else "accuracy"))
    columns = [
        ("", "left", [row.name for row in rows]),
        (
            "\n".join(textwrap.wrap(written.name, 14, break_long_words=False)),
            "right",
            [_metric(row, written) for row in rows],
        ),
        ("parameters", "right", [numbers.count(row.parameters) for row in rows]),
        ("latency", "right", [numbers.milliseconds(row.latency_ms) for row in rows]),
        ("size", "right", [numbers.size(row.bytes) for row in rows]),
    ]
    shown = [column for column in columns if not column[2] or any(cell != numbers.NONE for cell in column[2])]
    drawn = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, header_style="dim")
    for head, justify, _ in shown:
        drawn.add_column(head, justify="right" if justify == "right" else "left", no_wrap=head != "", overflow="fold")
    for i, row in enumerate(rows):
        drawn.add_row(*(_plain(cells[i]) for *_, cells in shown), style="dim" if row.reference else "")
    return drawn


def _metric(row: Row, written: Word) -> str:
    said = written.write(row.metric)
    return said if row.deviation is None else f"{said} ± {written.size(row.deviation)}"


def _plain(text: str) -> Any:
    """Text that is no markup, with plain spaces: terminals do not agree on how wide a narrow one is."""
    from rich.text import Text

    return Text(text.replace(numbers.THIN, " "))
