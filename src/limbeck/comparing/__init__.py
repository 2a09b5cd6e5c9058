"""`limbeck compare`: several methods, or values of any key of the recipe, on the same data with the same budget."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from limbeck.comparing import tables, words
from limbeck.comparing.plan import plan
from limbeck.comparing.record import FILE, Record, file_of, is_comparison
from limbeck.comparing.running import Conductor, bring
from limbeck.errors import RecipeError
from limbeck.locking import only_here
from limbeck.recipe import RecipeKeys
from limbeck.recipe.building import each_data_once
from limbeck.run import Run, Source

if TYPE_CHECKING:
    from limbeck.terminal import Terminal

__all__ = ["Comparison", "compare"]


class Comparison:
    """A folder of run folders with `comparison.json`, `table.md`, `table.tex` and the report.

    Raises:
        RecipeError: the folder is no comparison.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / FILE).is_file():
            raise RecipeError(
                f"{folder} is no comparison: it holds no {FILE}. Comparisons are made by limbeck compare."
            )

    def __repr__(self) -> str:
        return f"Comparison('{self.folder}')"

    @property
    def result(self) -> dict[str, Any]:
        """What `comparison.json` says: `problems` with their `arms`, `ranks`, and every run."""
        return json.loads((self.folder / FILE).read_text())

    @property
    def runs(self) -> list[Run]:
        """The finished runs whose folders are here."""
        done = [self.folder / run["name"] for run in self.result["runs"] if run["status"] == "finished"]
        return [Run(folder) for folder in done if folder.is_dir()]

    def table(self) -> str:
        """The tables as Markdown: means, deviations, intervals, ranks, cost, and why runs failed."""
        return tables.markdown(self.result)

    def to_latex(self) -> str:
        """The same as LaTeX `tabular`s."""
        return tables.latex(self.result)


def compare(
    *sources: Source | Run,
    vary: Mapping[str, Sequence[Any]] | None = None,
    tune: int = 0,
    out: str | Path | None = None,
    terminal: Terminal | None = None,
    command: str | None = None,
    **keys: Unpack[RecipeKeys],
) -> Comparison:
    """Run every source with every combination of values, and put what came of it side by side.

    The arms of a comparison share data, splits, budget and seeds; with `tune` each arm has the same number of trials
    on the validation split, and the test split is not there while they run. A run that fails is shown as failed, with
    its reason, and does not stop the others; the same call tries it again. Into the same `out` the same call goes on
    where it was stopped, and one with more values adds them.

    Args:
        sources: recipes (files, names, `Recipe`), runs (a finished one counts as it is), words as on the command line
            (`"method=kd,rkd"`, `"seed=0..4"`); or comparisons from several machines, which are joined.
        vary: key -> values, which may be objects for whole keys. `"seed,teacher"` varies two keys together:
            `[(0, "runs/a"), (1, "runs/b")]`. A first key `seed` means repetition; `data`, `task` and `student.view`
            make problems, among which arms are ranked; every other key makes arms.
        tune: trials per arm (Optuna's TPE, seeded) over the learning rate and the method's own `tunable` options.
        out: the folder; default `runs/<recipe>-comparison-<n>`.
        terminal: shows what is going on; None: silence.
        keys: keys of the recipe, put over every source.

    Raises:
        RecipeError: one of the recipes cannot be made, comparisons do not fit each other: nothing was started.
        Stopped: interrupted with everything saved.
    """
    given = [source for source in sources if not words.is_setting(source)]
    settings = words.settings(str(source) for source in sources if words.is_setting(source)) | dict(vary or {})
    if any(map(is_comparison, given)):
        return _join(given, settings or keys, out)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "compare runs in one process. For several devices start one comparison on each, and join them."
        )
    if tune < 0:
        raise RecipeError(f"tune={tune}: give the number of trials per arm, or 0.")
    planned = plan(given, settings, keys)
    folder = Path(out) if out is not None else _free(next(iter(planned.recipes)))
    _refuse_foreign(folder)
    with only_here(folder):
        record = Record.of(folder, planned, tune)
        if (folder / FILE).exists():
            before = Record.load(folder)
            before.join(record)
            record = before
        with each_data_once():
            Conductor(record, planned, terminal, command).run()
    return Comparison(folder)


def _join(sources: Sequence[Any], more: Any, out: str | Path | None) -> Comparison:
    """Comparisons as one, with their run folders where they are."""
    others = [str(source) for source in sources if not is_comparison(source)]
    if others or more:
        what = ", ".join(others) or "keys"
        raise RecipeError(f"comparisons are joined with comparisons only; leave out {what}, or compare in --out.")
    folder = Path(out) if out is not None else _free("joined")
    _refuse_foreign(folder)
    paths = [*([folder] if (folder / FILE).exists() else []), *sources]
    records = [Record.load(path) for path in dict.fromkeys(file_of(path).resolve() for path in paths)]
    places: dict[str, Path] = {}
    for record in records:
        for entry in record.entries:
            if entry.status == "finished" and (record.folder / entry.name).is_dir():
                places.setdefault(entry.mark, record.folder / entry.name)
    whole = records[0]
    for record in records[1:]:
        whole.join(record)
    with only_here(folder):
        whole.folder = folder
        for entry in whole.entries:
            if entry.mark in places:
                bring(places[entry.mark], folder / entry.name)
        Conductor(whole, None, None, None).write()
    return Comparison(folder)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not (folder / FILE).exists() and any(p.name != ".lock" for p in folder.iterdir()):
        raise RecipeError(f"{folder} is not empty and no comparison (no {FILE}). Choose another folder with --out.")


def _free(name: str) -> Path:
    number = 1
    while (Path("runs") / f"{name}-comparison-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-comparison-{number}"
