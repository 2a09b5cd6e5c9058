"""What can be said about a run's metric beyond one number: intervals from its stored answers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from limbeck.evaluation.intervals import Interval, paired_bootstrap
from limbeck.report.folder import RunFolder
from limbeck.report.numbers import real


def per_sample(run: RunFolder, role: str) -> Tensor | None:
    """The metric of each test sample, for metrics that are means over samples; otherwise None."""
    logits = run.logits(role)
    if logits is None or run.metric not in ("accuracy", "nll"):
        return None
    target = run.predictions["target"]
    if run.metric == "nll":
        return F.cross_entropy(logits, target, reduction="none")
    return logits.argmax(1).eq(target).double()


def interval(run: RunFolder, role: str) -> Interval | None:
    """Interval of a role's metric over test samples drawn again."""
    values = per_sample(run, role)
    return None if values is None else paired_bootstrap(values, values * 0)


def difference(run: RunFolder, other: str) -> Interval | None:
    """Interval of student minus another role; for the control the one that the run itself wrote, if it did."""
    written = run.result.get("difference")
    if other == "control" and isinstance(written, dict) and real(written.get("mean")) is not None:
        low, high = (real(written.get(end)) for end in ("low", "high"))
        nan = float("nan")
        return Interval(
            float(written["mean"]),
            nan if low is None else low,
            nan if high is None else high,
            real(written.get("level")) or 0.95,
            str(written.get("how") or ""),
        )
    ours, theirs = per_sample(run, "student"), per_sample(run, other)
    if ours is None or theirs is None:
        return None
    return paired_bootstrap(ours, theirs)


def bounds(around: Interval | None) -> tuple[float | None, float | None]:
    """The ends of an interval, None where there is none."""
    return (around.low, around.high) if around is not None and around.known else (None, None)
