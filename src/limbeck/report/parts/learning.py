"""How it learned: every term of the loss over the steps, their shares, and validation beside the control's."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.report import numbers
from limbeck.report.charts.lines import Curve, curves
from limbeck.report.charts.stack import band
from limbeck.report.folder import RunFolder
from limbeck.report.markup import esc, figure, legend, missing, panels, per_run, role, section
from limbeck.report.parts.track import Record, Track, share_of, term
from limbeck.report.vocabulary import word

COLOURS = 8
Keys = list[tuple[str, str]]


def learning(runs: Sequence[RunFolder]) -> str:
    """The section of learning curves; several runs first share one panel of validation curves."""
    shared = together(runs) if len(runs) > 1 else ""
    return section("learning", "Learning", shared, per_run(runs, _of))


def together(runs: Sequence[RunFolder]) -> str:
    """The validation curves of all runs on one panel."""
    written = word(runs[0].metric, runs[0].higher_is_better)
    found = [Curve(f"{i + 1}", Track.of(run.log).metric(), f"c{i % COLOURS}") for i, run in enumerate(runs)]
    chart = _metric_panel(found, [], runs[0])
    if not chart:
        return ""
    keys = [(f"{i + 1}  {run.name}", f"c{i % COLOURS}") for i, run in enumerate(runs)]
    return figure(panels(chart, legend(keys)), f"The {esc(written.name)} on the validation split, all runs.")


def _of(run: RunFolder) -> str:
    track, control = Track.of(run.log), Track.of(run.control_log)
    if not track.training and not track.validation:
        return missing("There is no log, so there are no learning curves.")
    charts, keys = [], []
    for trainee, records in track.trainees().items():
        beside = control.training if trainee == "student" else []
        chart, entries = _terms(trainee, records, beside, track.starts)
        charts.append(chart)
        keys += entries
    validation = _validation(run, track, control)
    caption = [
        "Each term of the loss as it was optimised, faint, with its running mean; below, how much of the loss each makes "
        "up." if charts else "",
        "The metric on the validation split, which alone decides the epoch that is kept: the ring." if validation else "",
        f"{role('control')}: the same student without a teacher." if control.validation else "There is no control’s curve.",
    ]  # fmt: skip
    keys_list = legend(list(dict.fromkeys(keys)))
    return figure(panels(*charts, validation + keys_list), " ".join(filter(None, caption)))


def _terms(
    trainee: str, records: list[Record], beside: list[Record], starts: list[tuple[float, str]]
) -> tuple[str, Keys]:
    """Panel and legend of one trainee's terms; the control's term of the same name is drawn beside its own."""
    names = list(dict.fromkeys(str(name) for record in records for name in record["terms"]))
    styles = [f"c{i % COLOURS}" for i in range(len(names))]
    found, keys = [], []
    for name, style in zip(names, styles):
        found.append(Curve(name, term(records, name), style))
        keys.append((name, style))
        if points := term(beside, name):
            found.append(Curve(f"{name} of the control", points, "control"))
            keys.append((f"{name} of the control", "control"))
    what = "terms of the loss" if trainee == "student" else f"terms of the loss, {trainee}"
    ends = ", ".join(f"{curve.name} ends at {numbers.plain(curve.points[-1][1])}" for curve in found if curve.points)
    write = numbers.plain
    chart = curves(found, title=what, desc=ends, write=write, tick=write, label=what, stages=starts)
    rows = [(record["x"], [share_of(record, name) for name in names]) for record in records]
    strip = band(names, styles, rows, title="shares of the loss", label="share of the loss") if len(names) > 1 else ""
    return chart + strip, keys


def _validation(run: RunFolder, track: Track, control: Track) -> str:
    stages = run.result.get("stages") or []
    kept = {(str(s.get("name")), s.get("selected_epoch")) for s in stages if s.get("selected_epoch") is not None}
    chosen = [record for record in track.validation if (str(record.get("stage")), record.get("epoch")) in kept]
    marks = [(record["x"], value) for record in chosen if (value := numbers.real(record.get("metric"))) is not None]
    found = [Curve("student", track.metric(), "student", "student", marked=True, chosen=marks)]
    found.append(Curve("control", control.metric(), "control", "control", marked=True))
    return _metric_panel(found, track.starts, run)


def _metric_panel(found: list[Curve], starts: list[tuple[float, str]], run: RunFolder) -> str:
    written = word(run.metric, run.higher_is_better)
    ends = ", ".join(f"{curve.name} ends at {written.write(curve.points[-1][1])}" for curve in found if curve.points)
    label = f"{written.name} on validation"
    return curves(found, title=label, desc=ends, write=written.write, tick=written.tick, label=label, stages=starts)
