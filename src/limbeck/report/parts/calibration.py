"""Whether confidence can be trusted: one reliability diagram per model."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.evaluation.calibration import reliability
from limbeck.report.charts.reliability import diagram
from limbeck.report.folder import RunFolder
from limbeck.report.markup import figure, missing, panels, per_run, role, section
from limbeck.report.numbers import real, share

BINS = 15


def calibration(runs: Sequence[RunFolder]) -> str:
    """The section of reliability diagrams, for tasks with one class per sample."""
    if not any(run.logits(who) is not None for run in runs for who in run.roles):
        why = "Calibration needs stored predictions with one class per sample, and there are none."
        return section("calibration", "Calibration", missing(why))
    return section("calibration", "Calibration", per_run(runs, _of))


def _of(run: RunFolder) -> str:
    charts = []
    for who in ("student", "teacher", "control"):
        logits = run.logits(who)
        if logits is None:
            continue
        bins, target = reliability(logits, run.predictions["target"], bins=BINS), run.predictions["target"]
        error = real(((run.roles.get(who) or {}).get("figures") or {}).get("ece"))
        if error is None:
            error = sum(b.count / len(target) * abs(b.accuracy - b.confidence) for b in bins if b.count)
        sure = sum(b.count * b.confidence for b in bins if b.count) / len(target)
        right = sum(b.count * b.accuracy for b in bins if b.count) / len(target)
        leaning = "too sure" if sure > right else "too modest"
        said = f"mean confidence {share(sure)}, accuracy {share(right)}, calibration error {share(error)}"
        charts.append(
            f'<p class="over">{role(who)} <span>error {share(error)}, {leaning}</span></p>'
            + diagram(bins, who, title=f"reliability of the {who}", desc=said)
        )
    if not charts:
        return missing("No predictions were stored.")
    caption = (
        "On the diagonal a model is right as often as it is sure. Vertical strokes are the distance from it; below, "
        f"how many samples have that confidence. {BINS} bins of equal width."
    )
    return figure(panels(*charts, least=12), caption)
