"""Runs of a comparison, one after another; what was finished before is found, what fails is noted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from limbeck import control
from limbeck.comparing import figures, tables, tuning
from limbeck.comparing.plan import ALONE, Entry, Plan, labels, slug
from limbeck.comparing.record import Record
from limbeck.data.tensors import Data
from limbeck.engine.trainer import Observer, Silent, Stopped
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.report import write as write_report
from limbeck.run import Run, distill
from limbeck.terminal import Terminal
from limbeck.writing import link


class Conductor:
    """Brings the runs of a record about and writes down what came of each at once.

    Args:
        plan: their recipes; None where nothing is to be run.
        terminal: shows progress and, after every run, the tables so far.
    """

    def __init__(self, record: Record, plan: Plan | None, terminal: Terminal | None, command: str | None):
        self.record, self.plan, self.terminal, self.command = record, plan, terminal, command
        self.figures = figures.Figures(record.folder)
        self._seen: dict[tuple[str, str], Data] = {}  # by problem and seed: what tuning is shown
        self._hopeless: dict[tuple[str, str], str] = {}  # arms of which every trial failed

    def run(self) -> None:
        """Everything that is planned and not finished: seed by seed, so that what there is can be compared early."""
        assert self.plan is not None
        due = [entry for entry in self.record.entries if entry.mark in self.plan.ready and entry.status != "finished"]
        seeds = list(dict.fromkeys(entry.seed for entry in due))
        due.sort(key=lambda entry: (seeds.index(entry.seed), entry.method != ALONE))
        if self.record.tune and due:
            tuning.the_optuna()
            self._data(due[0])  # without a validation split nothing is started
        self.record.save(self.figures)
        for number, entry in enumerate(due):
            prefix = f"{number + 1}/{len(due)} · {entry.name} · "
            try:
                self._one(entry, prefix)
            except Stopped as stopped:
                if stopped.reason != "limit":
                    said = "stopped with everything saved. The same command goes on; finished runs are not repeated."
                    raise Stopped(stopped.reason, f"{self.record.folder}: {said}") from stopped
                self._failed(entry, str(stopped))
            except Exception as error:  # whatever it is, it is this run's, and the others go on
                self._failed(entry, f"{type(error).__name__}: {error}")
            result = self.record.save(self.figures)
            self._show(entry, result, last=number + 1 == len(due))
        self.write()

    def write(self) -> None:
        """The record, and a report for each problem."""
        told = labels(self.record.entries)
        result = self.record.save(self.figures)
        for problem in result["problems"]:
            done = [
                entry
                for entry in self.record.entries
                if entry.status == "finished"
                and told[entry.mark].problem == problem["name"]
                and self._folder(entry, "result.json").exists()
            ]
            page = f"report-{slug(problem['name'])}.html" if len(result["problems"]) > 1 else "report.html"
            if done:
                write_report(
                    [self._folder(entry) for entry in done],
                    self.record.folder / page,
                    first=tables.section(result, problem["name"]),
                    arms=[told[entry.mark].arm for entry in done],
                )

    def _folder(self, entry: Entry, file: str = "") -> Path:
        return self.record.folder / entry.name / file

    def _one(self, entry: Entry, prefix: str) -> None:
        assert self.plan is not None
        folder, recipe = self._folder(entry), self.plan.fresh(entry.mark)
        if self.record.tune:
            recipe = self._tuned(entry, recipe, prefix)
        if entry.mark in self.plan.there and not self.record.tune:
            bring(self.plan.there[entry.mark].folder, folder)
        else:
            distill(recipe, out=folder, observer=self._watching(prefix), command=self.command)
        entry.status, entry.reason = "finished", None
        entry.found, entry.method = figures.found(folder), str(Run(folder).result["method"])
        if entry.found["metric"] is None:
            raise RecipeError(f"its {entry.found['of']} is not defined on the split {entry.found['split']}.")
        others = any(other.method != ALONE for other in self.record.entries)
        if entry.method == ALONE and recipe.control == "train" and others:
            serve_as_control(folder, recipe)

    def _tuned(self, entry: Entry, recipe: Recipe, prefix: str) -> Recipe:
        """The recipe with the settings of its arm, found with the arm's first seed or known before.

        A `supervised` arm is tuned as the others are, and then it is what they are compared with: a control with the
        settings of each would cost as much again and answer another question.
        """
        told = labels(self.record.entries)
        label = told[entry.mark]
        alike = [other for other in self.record.entries if told[other.mark].problem == label.problem]
        where = (label.problem, label.arm)
        known = next((o for o in alike if o.tuned and told[o.mark].arm == label.arm), None)
        if known is None and where in self._hopeless:
            raise RecipeError(self._hopeless[where])
        if known is None:
            folder = self.record.folder / "tuning" / slug("-".join(filter(None, where)))
            blind = tuning.blind(recipe, self._data(entry))
            try:
                found = tuning.tune(blind, self.record.tune, folder, self._watching(f"{prefix}tuning · "), self.command)
            except RecipeError as error:
                self._hopeless[where] = str(error)
                raise
            entry.tuned, entry.trial_seconds = found
        else:
            entry.tuned, entry.trial_seconds = known.tuned, known.trial_seconds
        recipe = tuning.changed(recipe, entry.tuned)
        return recipe.with_keys({"control": "none"}) if any(other.method == ALONE for other in alike) else recipe

    def _data(self, entry: Entry) -> Data:
        assert self.plan is not None
        where = (labels(self.record.entries)[entry.mark].problem, entry.seed)
        if where not in self._seen:
            self._seen[where] = tuning.seen(self.plan.ready[entry.mark])
        return self._seen[where]

    def _failed(self, entry: Entry, reason: str) -> None:
        entry.status, entry.reason, entry.found = "failed", " ".join(reason.removeprefix("RecipeError: ").split()), {}
        if self.terminal is not None:
            self.terminal.say(f"{entry.name} failed: {entry.reason}")

    def _show(self, entry: Entry, result: dict[str, Any], last: bool) -> None:
        """The tables so far, where they can stand above the bars; a line elsewhere."""
        if self.terminal is None or (self.terminal.live and last):
            return
        if self.terminal.live:
            self.terminal.table(tables.terminal(result), last=False)
        elif entry.status == "finished":
            self.terminal.say(f"{entry.name}: {entry.found['of']} {entry.found['metric']:.4g}")

    def _watching(self, prefix: str) -> Observer:
        if self.terminal is None:
            return Silent()
        self.terminal.prefix = prefix
        return self.terminal.muted()


def serve_as_control(folder: Path, recipe: Recipe) -> None:
    """Lay a supervised run where the runs beside it look for their control, which is the very same training."""
    aside, place = folder / ".control", folder / control.FOLDER
    if place.exists():
        return
    data = recipe.build_data()
    mark = control.mark(recipe.build_student().model, data, recipe.build_task(data), recipe)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    shutil.copytree(folder / "student", aside / "student", copy_function=link)
    for file in ("log.jsonl", "stages.json"):
        link(str(folder / file), str(aside / file))
    control.sign(aside, mark)
    aside.rename(place)


def bring(run: Path, folder: Path) -> None:
    """A run folder under another name, its bytes kept once where the disk can; whole or not at all."""
    if (folder / "result.json").exists():
        return
    aside = folder.with_name(f".{folder.name}.coming")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(run, aside, copy_function=link, ignore=shutil.ignore_patterns(".lock"))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
