"""What `comparison.json` holds: the recipes, every run, and what follows from all of them; joined with others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.comparing import tables
from limbeck.comparing.figures import Figures
from limbeck.comparing.plan import Entry, Plan, labels, name
from limbeck.errors import RecipeError
from limbeck.recipe.comparing import difference
from limbeck.writing import write, write_json

FILE = "comparison.json"


@dataclass
class Record:
    """A comparison: its runs, and the folder that has theirs."""

    folder: Path
    tune: int
    recipes: dict[str, dict[str, Any]]
    entries: list[Entry]

    @classmethod
    def load(cls, source: str | Path) -> Record:
        """Read a comparison's folder, or its file.

        Raises:
            RecipeError: it is no comparison, or cannot be read.
        """
        path = file_of(source)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return cls(path.parent, told["tune"], told["recipes"], [Entry(**_own(run)) for run in told["runs"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{path} cannot be read as a comparison ({type(error).__name__}: {error}).") from error

    @classmethod
    def of(cls, folder: Path, plan: Plan, tune: int) -> Record:
        """The record of a plan."""
        return cls(folder, tune, dict(plan.recipes), list(plan.entries))

    def join(self, other: Record) -> None:
        """Take the runs of another comparison in; of a run that both have, one that is finished.

        Raises:
            RecipeError: they differ in more than the keys that they vary; this one stays as it was.
        """
        self._refuse(other)
        self.recipes |= other.recipes
        own = {entry.mark: entry for entry in self.entries}
        taken = {entry.name for entry in self.entries}
        for entry in other.entries:
            mine = own.get(entry.mark)
            if mine is None:
                self.entries.append(entry)
                entry.name = "" if entry.name in taken else entry.name
            elif mine.status != "finished":
                for fact in ("status", "reason", "tuned", "trial_seconds", "found", "method"):
                    setattr(mine, fact, getattr(entry, fact))
        name(self.entries)

    def _refuse(self, other: Record) -> None:
        here, there = self.folder / FILE, other.folder / FILE
        if self.tune != other.tune:
            raise RecipeError(
                f"{here} and {there} cannot be joined: {self.tune} tuning trials per arm here and {other.tune} there."
            )
        listed = {part for e in [*self.entries, *other.entries] for key in e.settings for part in key.split(",")}
        for title in self.recipes.keys() & other.recipes.keys():
            apart = [
                said
                for said in difference(self.recipes[title], other.recipes[title])
                if not any(said.split(" is ")[0] == key or said.startswith(f"{key}.") for key in listed)
            ]
            if apart:
                raise RecipeError(f"{here} and {there} compare other recipes: {title}: {'; '.join(apart[:8])}.")
        both = [*self.entries, *other.entries]
        told = labels(both)
        seen: dict[tuple[str, ...], tuple[str, Any]] = {}
        for entry in both:
            label = told[entry.mark]
            arm, seed = (label.problem, label.arm), (label.problem, entry.seed)
            for what, where, value, advice in (
                ("was tuned to", arm, entry.tuned, "Divide a tuned comparison by its arms, not by its seeds."),
                (
                    "has seen data with the fingerprint",
                    seed,
                    entry.found.get("data"),
                    "Runs are paired on the same data.",
                ),
                (
                    "has the fingerprint",
                    (*arm, entry.seed),
                    entry.mark,
                    "Objects given in Python need the same weights.",
                ),
            ):
                who, known = seen.setdefault((what, *where), (entry.name, value)) if value else ("", value)
                if known != value:
                    raise RecipeError(
                        f"{here} and {there} cannot be joined: {who} {what} {known}, and {entry.name} {value}. {advice}"
                    )

    def result(self, figures: Figures) -> dict[str, Any]:
        """What the file says."""
        told = labels(self.entries)
        open_ = [entry for entry in self.entries if entry.status == "planned"]
        return {
            "limbeck": __version__,
            "status": "running" if open_ else "finished",
            "tune": self.tune,
            "recipes": self.recipes,
            **figures.of(self.entries, told, self.tune),
            "runs": [{"problem_name": told[e.mark].problem, "arm": told[e.mark].arm} | asdict(e) for e in self.entries],
        }

    def save(self, figures: Figures) -> dict[str, Any]:
        """Write the file and the tables, each whole or not at all."""
        result = self.result(figures)
        write(self.folder / "table.md", tables.markdown(result))
        write(self.folder / "table.tex", tables.latex(result))
        write_json(self.folder / FILE, result)
        return result


def file_of(source: str | Path) -> Path:
    """The file of a comparison that a path means."""
    path = Path(source)
    return path / FILE if path.is_dir() else path


def is_comparison(source: Any) -> bool:
    """Whether a source is a comparison, or the file of one."""
    if not isinstance(source, (str, Path)):
        return False
    return (Path(source) / FILE).is_file() or (Path(source).suffix == ".json" and Path(source).is_file())


def _own(run: Mapping[str, Any]) -> dict[str, Any]:
    known: Iterable[str] = Entry.__dataclass_fields__
    return {key: run[key] for key in known if key in run}
