"""How it was made: what the run said, what it cost, the command, the recipe and the machine, ready to be copied."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from limbeck.report import numbers
from limbeck.report.folder import RunFolder
from limbeck.report.markup import Cell, esc, figure, missing, name, per_run, prose, section, table, words

LONGEST = 40_000


def notices(runs: Sequence[RunFolder]) -> str:
    """What the runs said when they started, each sentence once."""
    said = list(dict.fromkeys(str(notice) for run in runs for notice in run.result.get("notices") or []))
    if not said:
        return ""
    items = "".join(f"<li>{esc(notice, 1000)}</li>" for notice in said)
    return section("notices", "What the run said", f'<ol class="notices">{items}</ol>')


def making(runs: Sequence[RunFolder]) -> str:
    """The section from which a run can be repeated."""
    return section("making", "How it was made", per_run(runs, _of))


def _of(run: RunFolder) -> str:
    command, recipe = run.result.get("command"), run.recipe
    parts = [
        _cost(run),
        _stages(run),
        _source("command", "the command", esc(command, LONGEST)) if command else missing("The command was not kept."),
        _source("recipe", "recipe.yaml, resolved", quiet_comments(recipe))
        if recipe
        else missing("No recipe was kept."),
        _environment(run.environment),
    ]
    return "".join(parts)


def quiet_comments(recipe: str) -> str:
    """The recipe with its comments set back; # begins one at the start of a line or after a space, as in YAML."""
    return re.sub(r"(?m)((?:^|(?<=\s))#.*)$", r'<span class="comment">\1</span>', esc(recipe, LONGEST))


def _cost(run: RunFolder) -> str:
    cost = run.result.get("cost") or {}
    known = [
        (cost.get("steps"), "{} steps", numbers.count),
        (cost.get("samples"), "{} samples seen", numbers.count),
        (cost.get("seconds"), "{} of work", numbers.duration),
        (run.result.get("seed"), "seed {}", numbers.count),
    ]
    said = [form.format(write(value)) for value, form, write in known if numbers.real(value) is not None]
    return prose(f"{', '.join(said)}.") if said else ""


def _stages(run: RunFolder) -> str:
    stages = [stage for stage in run.result.get("stages") or [] if isinstance(stage, dict)]
    if len(stages) < 2:
        return ""
    heads = ["stage", "method", "epochs", "steps", "time", "epoch kept"]
    return figure(table(heads, [_stage(stage) for stage in stages]), "The stages, in their order.", kind="tab")


def _stage(stage: dict[str, Any]) -> list[Cell]:
    def number(key: str) -> Cell:
        value = numbers.real(stage.get(key))
        return Cell(
            numbers.duration(value) if key == "seconds" else numbers.count(value), "" if value is None else value
        )

    described = (words(stage.get(key) or numbers.NONE) for key in ("name", "method"))
    return [*described, *map(number, ("epochs", "steps", "seconds", "selected_epoch"))]


def _source(kind: str, title: str, markup: str) -> str:
    return (
        f'<div class="source {kind}"><div class="source-head"><span>{title}</span>'
        f'<button type="button" class="copy" aria-label="copy {title}">copy</button></div>'
        f'<pre tabindex="0"><code>{markup}</code></pre></div>'
    )


def _environment(facts: dict[str, Any]) -> str:
    if not facts:
        return missing("No facts about the machine were kept.")
    rows = [
        [Cell(name(key, 60), key, numeric=False), Cell(name(value, 120), numeric=False)] for key, value in facts.items()
    ]
    shown = table(["fact", "value"], rows[:200], sortable=False)
    return f"<details><summary>the machine and the versions</summary>{shown}</details>"
