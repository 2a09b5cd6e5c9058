"""Which classes are taken for which: the student's matrix beside the teacher's, and the pairs that go wrong most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from limbeck.report import numbers
from limbeck.report.budget import Budget
from limbeck.report.charts.matrix import confusion_squares, matrix
from limbeck.report.folder import RunFolder
from limbeck.report.markup import Cell, figure, missing, name, panels, per_run, role, section, table

PAIRS = 6
Counts = list[list[int]]


def confusion(runs: Sequence[RunFolder], budget: Budget) -> str:
    """The section of confusion matrices, for tasks with one class per sample."""
    if not any(run.logits("student") is not None for run in runs):
        why = "Confusion matrices need stored predictions with one class per sample, and there are none."
        return section("confusion", "Confusion", missing(why))
    return section("confusion", "Confusion", per_run(runs, partial(_of, budget=budget)))


def counts(run: RunFolder, who: str) -> Counts | None:
    """Samples by true class (rows) and predicted class (columns)."""
    logits = run.logits(who)
    if logits is None:
        return None
    classes = logits.shape[1]
    places: Tensor = run.predictions["target"] * classes + logits.argmax(1)
    return places.bincount(minlength=classes * classes).reshape(classes, classes).tolist()


def _of(run: RunFolder, budget: Budget) -> str:
    tables = {who: found for who in ("student", "teacher", "control") if (found := counts(run, who)) is not None}
    if "student" not in tables:
        return missing("No predictions of the student were stored.")
    names = run.labels(len(tables["student"]))
    # a model that answers for other classes than the student is not shown beside it
    tables = {who: found for who, found in tables.items() if len(found) == len(names)}
    shown = [who for who in ("student", "teacher") if who in tables]
    caption = ["The depth of a cell is the root of its share of the row, so that rare mistakes can be seen."]
    if len(shown) < 2:
        caption.append("There is no teacher’s matrix to show beside it.")
    if any(sum(n > 0 for row in tables[who] for n in row) > budget.cells for who in shown):
        caption.append(f"Only the {numbers.count(budget.cells)} deepest cells are drawn.")
    charts = (_matrix(who, tables[who], names, budget) for who in shown)
    return figure(panels(*charts, least=20), " ".join(caption), wide=True) + _mistakes(tables, names)


def _matrix(who: str, table_of: Counts, names: list[str], budget: Budget) -> str:
    chart = matrix(
        names,
        names,
        confusion_squares(table_of, names, who, most=budget.cells, write=numbers.share),
        title=f"confusion matrix of the {who}",
        desc=f"{sum(row[i] for i, row in enumerate(table_of))} of {sum(map(sum, table_of))} samples on the diagonal",
        style=who,
        row_label="true class",
        column_label="predicted class",
    )
    return f'<p class="over">{role(who)}</p>{chart}'


def _mistakes(tables: dict[str, Counts], names: list[str]) -> str:
    ours = tables["student"]
    wrong = [(ours[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j and ours[i][j]]
    if not wrong:
        return missing("The student made no mistake on these samples.")
    wrong.sort(key=lambda found: (-found[0], found[1], found[2]))
    rows = [
        [
            Cell(f"{name(names[i], 24)} called {name(names[j], 24)}", f"{names[i]} {names[j]}", numeric=False),
            *(Cell(str(found[i][j]), found[i][j]) for found in tables.values()),
            Cell(numbers.count(sum(ours[i])), sum(ours[i])),
        ]
        for _, i, j in wrong[:PAIRS]
    ]
    heads = ["mistake", *(role(who) for who in tables), "of samples"]
    caption = "The student’s most frequent mistakes, and how often the others make the same ones."
    return figure(table(heads, rows), caption, kind="tab")
