"""How it learned: every term of the loss over the steps, their shares, and validation beside the control's."""

from __future__ import annotations

from collections.abc import Sequence

from limbeck.report import numbers
from limbeck.report.charts.lines import Curve, curves
from limbeck.report.charts.stack import band
from limbeck.report.folder import RunFolder
from limbeck.report.markup import esc, figure, legend, missing, panels, per_run, role, section
from limbeck.report.parts.track import Record, Track, lines, share_of, values
from limbeck.report.vocabulary import word

COLOURS = 8
MOST_STAGES = 8


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
    track = Track.of(run.log)
    control = Track.of(run.control_log).ending(track.end)
    if not track.training and not track.validation:
        return missing("There is no log, so there are no learning curves.")
    parts = track.parts()
    charts = [_terms(stage, records, [], []) for stage, records in parts[:-1][: MOST_STAGES - 1]]
    if parts:
        stage, records = parts[-1]
        charts.append(_terms(stage, records, control.training, [] if stage else track.starts))
    validation = _validation(run, track, control)
    caption = []
    if charts:
        each = "of each stage " if len(parts) > 1 else ""
        faint = "Each term of the loss {}as it was optimised, faint, with its running mean; below, the share of each in the loss."
        caption.append(faint.format(each))
    if len(parts) > MOST_STAGES:
        caption.append(f"{len(parts) - MOST_STAGES} stages before the last are not drawn.")
    if validation:
        caption.append("The metric on the validation split, which alone decides the epoch that is kept: the ring.")
    if control.validation:
        moved = ", drawn to end with it" if len(track.starts) > 1 else ""
        caption.append(f"{role('control')}: the same student without a teacher{moved}.")
    else:
        caption.append("There is no control’s curve.")
    return figure(panels(*charts, validation), " ".join(caption))


def _terms(stage: str, records: list[Record], control: list[Record], starts: list[tuple[float, str]]) -> str:
    """Panel, shares and legend of one stage's terms; the control's term of the same name is drawn beside its own."""
    found, keys, beside = [], [], lines(control)
    drawn = lines(records)
    several = len({trainee for trainee, _ in drawn}) > 1
    for i, ((trainee, term), holders) in enumerate(drawn.items()):
        name, style = f"{trainee}, {term}" if several and trainee not in term else term, f"c{i % COLOURS}"
        found.append(Curve(name, values(holders, term), style))
        keys.append((name, style))
        if points := values(beside.get((trainee, term), []), term):
            found.append(Curve(f"{term} of the control", points, "control"))
            keys.append((f"{term} of the control", "control"))
    label = f"terms of the loss, {stage}" if stage else "terms of the loss"
    ends = ", ".join(f"{curve.name} ends at {numbers.plain(curve.points[-1][1])}" for curve in found if curve.points)
    write = numbers.plain
    chart = curves(found, title=label, desc=ends, write=write, tick=write, label=label, stages=starts)
    return chart + ("" if several else _shares(records, [term for _, term in drawn])) + legend(keys)


def _shares(records: list[Record], terms: list[str]) -> str:
    if len(terms) < 2:
        return ""
    rows = [(record["x"], [share_of(record, term) for term in terms]) for record in records]
    styles = [f"c{i % COLOURS}" for i in range(len(terms))]
    return band(terms, styles, rows, title="shares of the loss", label="share of the loss")


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
