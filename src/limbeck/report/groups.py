"""Runs that differ in nothing but the seed, taken together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.evaluation.intervals import Interval, paired_t
from limbeck.report.estimates import difference
from limbeck.report.folder import RunFolder
from limbeck.report.numbers import real


@dataclass(frozen=True)
class Group:
    """Runs of one method with one student and one teacher, as their results name them."""

    method: str
    student: str
    teacher: str
    runs: tuple[RunFolder, ...]

    @property
    def metrics(self) -> list[float]:
        """The students' metric, one per run that has it."""
        found = (real((run.roles.get("student") or {}).get("metric")) for run in self.runs)
        return [metric for metric in found if metric is not None]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.metrics) if self.metrics else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over runs, None for fewer than two."""
        return statistics.stdev(self.metrics) if len(self.metrics) > 1 else None

    @property
    def gain(self) -> Interval | None:
        """Student minus control, paired by run, with its t interval."""
        gaps = [gap.mean for run in self.runs if (gap := difference(run, "control")) is not None]
        return paired_t(gaps) if gaps else None


def groups(runs: Sequence[RunFolder]) -> list[Group]:
    """The runs by method, student and teacher, in the order of their first run."""
    found: dict[tuple[str, str, str], list[RunFolder]] = {}
    for run in runs:
        student, teacher = ((run.roles.get(role) or {}).get("name") for role in ("student", "teacher"))
        found.setdefault((str(run.result.get("method")), str(student), str(teacher)), []).append(run)
    return [Group(*key, tuple(members)) for key, members in found.items()]
