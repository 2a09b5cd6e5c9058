"""The top of the page: its name, what was found in a paragraph, and the few numbers that matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from limbeck.report import numbers
from limbeck.report.estimates import difference
from limbeck.report.folder import RunFolder
from limbeck.report.groups import Group, groups
from limbeck.report.markup import esc, name, role
from limbeck.report.parts.seeds import mean_and_deviation
from limbeck.report.vocabulary import word


def head(runs: Sequence[RunFolder], told: Sequence[RunFolder] | None = None) -> str:
    """The header of a page about one run, or about several that are compared; ``told``: those that the page goes into."""
    told = runs if told is None else told
    if len(runs) == 1:
        run, kicker = runs[0], "Limbeck, a report on one distillation"
        title, said, below = name(run.name, 60), abstract(run), _numbers(run) + _requirements(run)
        if (status := str(run.result.get("status") or "finished")) != "finished":
            kicker += f' <span class="status">({esc(status, 40)})</span>'
    else:
        kicker, title, said = "Limbeck, a comparison", f"{len(runs)} runs beside each other", _compared(runs)
        below = f'<ol class="runs">{"".join(f"<li>{_told_apart(run)}</li>" for run in told)}</ol>'
        if len(told) < len(runs):
            below = f"<p>The page goes into {len(told)} of them, one of each kind; means and intervals count all {len(runs)}.</p>\n{below}"
    return f'<header><p class="kicker">{kicker}</p>\n<h1>{title}</h1>\n<p class="abstract">{said}</p>\n{below}</header>'


def abstract(run: RunFolder) -> str:
    """What happened, in sentences: who taught whom, what arrived, whether it was worth it, and what it saves."""
    return " ".join(filter(None, (_who(run), _arrived(run), worth(run), _cheaper(run))))


def worth(run: RunFolder) -> str:
    """Whether the student is better than the same student without a teacher, and how sure that is."""
    found = difference(run, "control")
    if found is None:
        return ""
    written = word(run.metric, run.higher_is_better)
    unit = " points" if written.is_share else ""
    bounds = f"{written.difference(found.low)} to {written.difference(found.high)}"
    sure = f"({100 * found.level:.0f}{numbers.THIN}% interval {bounds})" if found.known else "(no interval is known)"
    gain = found.mean if run.higher_is_better else -found.mean
    begin = f"Against the {role('control')}, the same student without a teacher, "
    size = f"{written.size(gain)}{unit} {sure}"
    if found.decided and gain > 0:
        return f"{begin}that is a gain of {size}, more than chance would give."
    if found.decided:
        return f"{begin}that is a <em>loss</em> of {size}: here, distilling did harm."
    chance = ": chance alone could have given it" if found.known else ""
    return f"{begin}the difference is {written.difference(found.mean)}{unit} {sure}{chance}."


def _compared(runs: Sequence[RunFolder]) -> str:
    """Means over seeds where there are any; only otherwise the best run, with the warning that goes with it."""
    found = groups(runs)
    if len(found) < len(runs):
        best = sorted(found, key=lambda group: group.mean or 0.0, reverse=runs[0].higher_is_better)
        shown = found if len(found) <= 4 else best[:3]
        begin = f"Of {len(found)} kinds of runs, these came out best. " if len(shown) < len(found) else ""
        return begin + " ".join(_over_seeds(group, among=found) for group in shown)
    scored = [run for run in runs if numbers.real((run.roles.get("student") or {}).get("metric")) is not None]
    if not scored:
        return "No student was measured."
    written = word(runs[0].metric, runs[0].higher_is_better)
    top = (max if runs[0].higher_is_better else min)(scored, key=lambda run: run.roles["student"]["metric"])
    score = written.write(top.roles["student"]["metric"])
    return (
        f"The best {role('student')} is that of run {runs.index(top) + 1}, <strong>{name(top.name, 40)}</strong>, with "
        f"{_article(written.name)} of {score}; picked by the figure it is praised for, it is flattered a little. "
        f"{worth(top)}"
    )


def _over_seeds(group: Group, *, among: Sequence[Group]) -> str:
    run = group.runs[0]
    written, gain = word(run.metric, run.higher_is_better), group.gain
    unit = " points" if written.is_share else ""
    alike = sum(other.method == group.method for other in among) > 1
    whose = f" ({name(group.student, 30)} from {name(group.teacher, 30)})" if alike else ""
    seeds = f"over {len(group.runs)} seeds" if len(group.runs) > 1 else "with one seed"
    said = (
        f"The {role('student')} of <strong>{name(group.method, 40)}</strong>{whose} reaches {_article(written.name)} of "
        f"{mean_and_deviation(group, written)} {seeds}"
    )
    if gain is None:
        return f"{said}."
    against = f"{written.difference(gain.mean)}{unit} against the {role('control')}"
    if not gain.known:
        return f"{said}, {against}."
    bounds = f"95{numbers.THIN}% interval {written.difference(gain.low)} to {written.difference(gain.high)}"
    return f"{said}, {against} ({bounds}{'' if gain.decided else ': chance alone could have given it'})."


def _told_apart(run: RunFolder) -> str:
    facts = [name(run.result["method"], 40)] if run.result.get("method") else []
    if (seed := numbers.real(run.result.get("seed"))) is not None:
        facts.append(f"seed {numbers.count(seed)}")
    if numbers.real(run.result.get("retention")) is not None:
        facts.append(f"{numbers.share(run.result['retention'])} of its teacher retained")
    return f"{name(run.name, 60)} <small>{', '.join(facts)}</small>"


def _who(run: RunFolder) -> str:
    student, teacher = run.roles.get("student"), run.roles.get("teacher")
    if student is None:
        return "This run measured no student."
    ours = list(map(str, student.get("view") or []))
    theirs = list(map(str, (teacher or {}).get("view") or []))
    less = set(ours) < set(theirs)
    who = f"The {role('student')} {_called(student)}{_given(ours, only=less)}"
    how = f" by <em>{name(run.result['method'], 40)}</em>" if run.result.get("method") else ""
    if teacher is None:
        return f"{who} was trained{how} without another network as its teacher."
    return f"{who} learned{how} from the {role('teacher')} {_called(teacher)}{_given(theirs).rstrip(',')}."


def _arrived(run: RunFolder) -> str:
    student, teacher = run.roles.get("student"), run.roles.get("teacher") or {}
    if student is None:
        return ""
    written, samples = word(run.metric, run.higher_is_better), numbers.real(run.result.get("samples"))
    split = esc(run.result.get("split") or "test", 30)
    begin = f"On {numbers.count(samples)} {split} samples it" if samples else "It"
    said = f"{begin} reaches {_article(written.name)} of {written.write(student.get('metric'))}"
    if numbers.real(run.result.get("retention")) is None:
        return f"{said}."
    return f"{said} and keeps {numbers.share(run.result['retention'])} of the teacher’s {written.write(teacher.get('metric'))}."


def _cheaper(run: RunFolder) -> str:
    student, teacher = run.roles.get("student") or {}, run.roles.get("teacher") or {}
    smaller, faster = (_ratio(teacher.get(key), student.get(key)) for key in ("parameters", "latency_ms"))
    said = []
    if smaller and smaller > 1.05:
        said.append(f"has {numbers.times(smaller)} fewer parameters than the teacher")
    if faster and (faster > 1.05 or faster < 0.95):
        how = "faster" if faster > 1 else "slower"
        said.append(f"answers {numbers.times(max(faster, 1 / faster))} {how}")
    return f"It {' and '.join(said)}." if said else ""


def _numbers(run: RunFolder) -> str:
    """The few numbers, large; what is not known has no place among them."""
    student, teacher = run.roles.get("student") or {}, run.roles.get("teacher") or {}
    written, found = word(run.metric, run.higher_is_better), difference(run, "control")
    items = []
    if numbers.real(student.get("metric")) is not None:
        items.append((written.write(student["metric"]), f"{esc(written.name)} of the student"))
    if numbers.real(run.result.get("retention")) is not None:
        items.append((numbers.share(run.result["retention"]), "of the teacher retained"))
    if found is not None:
        around = f"<br>{written.difference(found.low)} to {written.difference(found.high)}" if found.known else ""
        unit = "points " if written.is_share else ""
        items.append((written.difference(found.mean), f"{unit}against the control{around}"))
    if numbers.real(run.result.get("gap_closed")) is not None:
        items.append((numbers.share(run.result["gap_closed"], 0), "of the gap from control to teacher closed"))
    smaller, faster = (_ratio(teacher.get(key), student.get(key)) for key in ("bytes", "latency_ms"))
    if smaller and smaller > 1.05:
        also = f"<br>{numbers.times(faster)} faster" if faster and faster > 1.05 else ""
        items.append((numbers.times(smaller), f"smaller than the teacher{also}"))
    shown = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for value, label in items)
    return f'<dl class="numbers">{shown}</dl>\n' if shown else ""


def _requirements(run: RunFolder) -> str:
    rows = []
    for requirement in run.result.get("require") or []:
        verdict = "held" if requirement.get("held") else "missed"
        value = numbers.plain(requirement.get("value"))
        rows.append(
            f'<li class="{verdict}"><span class="verdict">{verdict}</span> '
            f"<code>{esc(requirement.get('text'), 200)}</code> <small>measured {value}</small></li>"
        )
    return f'<ul class="requirements" aria-label="requirements">{"".join(rows)}</ul>\n' if rows else ""


def _called(model: dict[str, Any]) -> str:
    return f"<strong>{name(model['name'], 50)}</strong>" if model.get("name") else ""


def _given(views: Sequence[str], *, only: bool = False) -> str:
    shown = [name(view, 30) for view in views]
    if not shown:
        return ""
    return f", given {'only ' if only else ''}{' and '.join(filter(None, [', '.join(shown[:-1]), shown[-1]]))},"


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {esc(noun)}"


def _ratio(one: Any, other: Any) -> float | None:
    above, below = numbers.real(one), numbers.real(other)
    return above / below if above and below else None
