"""What follows from the runs of a comparison: means, differences with their intervals, ranks, and what it cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.comparing.plan import Entry, Label, baseline
from limbeck.evaluation import intervals
from limbeck.evaluation.intervals import Interval
from limbeck.report.estimates import per_sample
from limbeck.report.folder import RunFolder

BASES = ("supervised", "kd")


def found(folder: Path) -> dict[str, Any]:
    """The figures of a finished run that a comparison needs."""
    result = json.loads((folder / "result.json").read_text())
    facts = json.loads((folder / "environment.json").read_text())
    last = (result["stages"] or [{}])[-1]
    return {
        "metric": result["student"]["metric"],
        "validation": last.get("validation_metric"),
        "figures": result["student"]["figures"],
        "teacher": (result["teacher"] or {}).get("metric"),
        "control": (result["control"] or {}).get("metric"),
        "of": result["task"]["metric"],
        "higher_is_better": result["task"]["higher_is_better"],
        "split": result["split"],
        "samples": result["samples"],
        "parameters": result["student"]["parameters"],
        "steps": result["cost"]["steps"],
        "seconds": result["cost"]["seconds"],
        "data": facts.get("data_fingerprint"),
    }


class Figures:
    """Computes them; each run's answers are read once.

    Args:
        folder: where the run folders are. The intervals over samples need their predictions.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._scores: dict[str, tuple[Tensor, Tensor] | None] = {}

    def of(self, entries: Sequence[Entry], labels: Mapping[str, Label], tune: int) -> dict[str, Any]:
        """`problems`, each with its arms, and `ranks`: the mean over several problems of an arm's rank in each."""
        arms: dict[Label, list[Entry]] = {}
        for entry in entries:
            arms.setdefault(labels[entry.mark], []).append(entry)
        problems = [self._problem(name, arms, tune) for name in dict.fromkeys(label.problem for label in arms)]
        return {"problems": problems, "ranks": _mean_ranks(problems)}

    def _problem(self, name: str, all_arms: Mapping[Label, list[Entry]], tune: int) -> dict[str, Any]:
        arms = {label: runs for label, runs in all_arms.items() if label.problem == name}
        methods = {label: runs[0].method for label, runs in arms.items()}
        rows = [self._arm(label, runs, tune) for label, runs in arms.items()]
        for label, row in zip(arms, rows):
            for base in BASES:
                other = baseline(label, methods[label], methods, base)
                row["differences"][base] = other and self.difference(arms[label], arms[other]) | {"arm": other.arm}
        some = next((run.found for runs in arms.values() for run in runs if run.found), {})
        if all(run.status != "planned" for runs in arms.values() for run in runs):
            for row, place in zip(rows, ranks([row["mean"] for row in rows], some.get("higher_is_better", True))):
                row["rank"] = place
        told = {key: some.get(key) for key in ("higher_is_better", "split", "samples")}
        return {"name": name, "metric": some.get("of")} | told | {"arms": rows}

    def _arm(self, label: Label, runs: Sequence[Entry], tune: int) -> dict[str, Any]:
        done = [run for run in runs if run.status == "finished"]
        values = {run.seed: run.found["metric"] for run in done}
        teachers = [run.found["teacher"] for run in done if run.found.get("teacher") is not None]
        return {
            "arm": label.arm,
            "method": runs[0].method,
            **spread(list(values.values())),
            "values": values,
            "planned": len(runs),
            "finished": len(done),
            "failed": [{"run": run.name, "reason": run.reason} for run in runs if run.status == "failed"],
            "teacher": statistics.fmean(teachers) if teachers else None,
            "tuned": runs[0].tuned,
            "differences": {},
            "rank": None,
            "cost": {
                "seconds": statistics.median(run.found["seconds"] for run in done) if done else None,
                "steps": statistics.median(run.found["steps"] for run in done) if done else None,
                "trials": tune,
                "trial_seconds": next((run.trial_seconds for run in runs if run.tuned), None),
            },
        }

    def difference(self, ours: Sequence[Entry], theirs: Sequence[Entry]) -> dict[str, Any]:
        """This arm minus another one: the t interval over the seeds that both have, the bootstrap over test samples.

        A sample that was seen with several seeds counts once, with its mean over them: it is the same sample, and runs
        that differ in the seed do not make it into several.
        """
        others = {run.seed: run for run in theirs if run.status == "finished"}
        pairs = [(run, others[run.seed]) for run in ours if run.status == "finished" and run.seed in others]
        if not pairs:
            return {"seeds": None, "samples": None}
        seeds = intervals.paired_t([a.found["metric"] - b.found["metric"] for a, b in pairs])
        samples = self._over_samples(pairs)
        what = "student - student"
        return {"seeds": seeds.to_dict(what), "samples": samples and samples.to_dict(what)}

    def _over_samples(self, pairs: Sequence[tuple[Entry, Entry]]) -> Interval | None:
        groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}  # runs on the same rows
        for ours, theirs in pairs:
            one, other = self._score(ours), self._score(theirs)
            if one is None or other is None or not torch.equal(one[1], other[1]):
                return None
            groups.setdefault((ours.found["data"], len(one[1])), []).append((one[0], other[0]))
        a, b = (
            torch.cat([torch.stack([pair[side] for pair in group]).mean(0) for group in groups.values()])
            for side in (0, 1)
        )
        return intervals.paired_bootstrap(a, b)

    def _score(self, entry: Entry) -> tuple[Tensor, Tensor] | None:
        """What each test sample counts for the metric, with the samples' numbers; None where that is not known."""
        if entry.name not in self._scores:
            folder = self.folder / entry.name
            run = RunFolder.read(folder) if (folder / "result.json").exists() else None
            values = per_sample(run, "student") if run else None
            self._scores[entry.name] = (values, run.predictions["id"]) if run and values is not None else None
        return self._scores[entry.name]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (None for fewer than two)."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def ranks(means: Sequence[float | None], higher_is_better: bool = True) -> list[float]:
    """1 for the best; equal ones share the mean of their places, and those without a result share the last ones.

    Source: Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006, section 3.2.
    """
    from scipy.stats import rankdata

    sign = -1 if higher_is_better else 1
    return [float(place) for place in rankdata([float("inf") if m is None else sign * m for m in means])]


def _mean_ranks(problems: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The mean rank of every arm that all problems have; None for a single problem, or while runs are missing."""
    rows = [{row["arm"]: row["rank"] for row in problem["arms"]} for problem in problems]
    common = [arm for arm in rows[0] if all(arm in row for row in rows)] if rows else []
    if len(problems) < 2 or not common or any(rank is None for row in rows for rank in row.values()):
        return None
    again = [
        ranks([row["mean"] for row in _only(problem, common)], problem["higher_is_better"] is not False)
        for problem in problems
    ]
    mean = {arm: statistics.fmean(places[i] for places in again) for i, arm in enumerate(common)}
    return [{"arm": arm, "rank": mean[arm], "problems": len(problems)} for arm in sorted(mean, key=mean.__getitem__)]


def _only(problem: Mapping[str, Any], arms: Sequence[str]) -> list[Mapping[str, Any]]:
    rows = {row["arm"]: row for row in problem["arms"]}
    return [rows[arm] for arm in arms]
