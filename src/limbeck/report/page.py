"""The page a run leaves behind: one file that needs nothing else, for one run or for several beside each other."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from limbeck.errors import RecipeError
from limbeck.report.budget import LARGEST_PAGE, Budget
from limbeck.report.folder import RunFolder
from limbeck.report.groups import groups
from limbeck.report.markup import contents, esc
from limbeck.report.parts.calibration import calibration
from limbeck.report.parts.confusion import confusion
from limbeck.report.parts.disagreement import disagreement
from limbeck.report.parts.findings import findings
from limbeck.report.parts.head import head
from limbeck.report.parts.learning import learning
from limbeck.report.parts.making import making, notices
from limbeck.report.parts.results import results
from limbeck.report.parts.samples import samples
from limbeck.report.parts.tradeoff import tradeoff

MANY = 12  # runs that a page goes into one by one


def write(folders: Sequence[Path], out: Path, first: str = "", arms: Sequence[str] = ()) -> Path:
    """Write one HTML page about these run folders to ``out`` (a file, or a folder that gets ``report.html``).

    One run is told, several are compared. The page loads nothing and stays below 3 MB; parts that a run has no files
    for are left out with a sentence; ``first`` is a section to put before the others, ``arms`` names what each run is a
    repetition of, where its method alone does not say it. It is written aside and renamed, so that a reader never sees half a page.

    Raises:
        RecipeError: no folder was given, one has no readable ``result.json``, or they measure different metrics.
    """
    if not folders:
        raise RecipeError("a report needs at least one run folder; none was given.")
    out = Path(out)
    target = out / "report.html" if out.is_dir() else out
    runs = [RunFolder.read(Path(folder)) for folder in folders]
    if arms:
        runs = [replace(run, result=run.result | {"method": arm}) for run, arm in zip(runs, arms, strict=True)]
    text = page(runs, first)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, target)
    return target


def page(runs: Sequence[RunFolder], first: str = "") -> str:
    """The whole page as text, with as much detail as fits.

    Raises:
        RecipeError: the runs measure different things, so that nothing on the page could be compared.
    """
    metrics = list(dict.fromkeys(run.metric for run in runs))
    if len(metrics) > 1:
        raise RecipeError(
            f"these runs measure different metrics ({', '.join(metrics)}) and cannot stand on one page. "
            f"Report those of each metric on a page of its own."
        )
    budget = Budget.for_runs(min(len(runs), 2 * MANY))
    text = _page(runs, budget, first)
    while len(text.encode()) > LARGEST_PAGE and budget.cells > 1:
        budget = budget.less()
        text = _page(runs, budget, first)
    return text


def _page(runs: Sequence[RunFolder], budget: Budget, first: str) -> str:
    told = _one_of_each(runs) if len(runs) > MANY else runs
    classify = any(run.classifies for run in told)
    about_classes = [confusion(told, budget), disagreement(told, budget), calibration(told)] if classify else []
    sections = [
        first,
        results(told),
        samples(told, budget),
        tradeoff(told),
        learning(told),
        *about_classes,
        findings(told, budget),
        notices(told),
        making(told),
    ]
    title = esc(runs[0].name if len(runs) == 1 else f"{len(runs)} runs", 100)
    style, script = _asset("page.css"), _asset("page.js")
    # nothing may be loaded and no other script may run, even if something slipped through the escaping
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    version = esc(runs[0].result.get("limbeck") or "", 30)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{title} · Limbeck</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f"{head(runs, told)}\n{contents(sections)}\n{''.join(sections)}\n"
        f"<footer>Written by Limbeck {version}. This page is one file and loads nothing.</footer>\n</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _one_of_each(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The first run of each kind, and no more kinds than anybody would read about."""
    return [group.runs[0] for group in groups(runs)][: 2 * MANY]


def _asset(name: str) -> str:
    return (resources.files("limbeck.report") / "assets" / name).read_text(encoding="utf-8")
