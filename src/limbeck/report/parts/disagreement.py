"""Where student and teacher differ: how often, who is right then, and what such samples look like."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from limbeck.report import numbers
from limbeck.report.budget import Budget
from limbeck.report.charts.stack import whole
from limbeck.report.folder import RunFolder
from limbeck.report.markup import esc, figure, missing, name, per_run, role, section, swatches
from limbeck.report.pictures import is_sound, picture, spectrogram


def disagreement(runs: Sequence[RunFolder], budget: Budget) -> str:
    """The section on disagreement; without a teacher's answers a sentence."""
    title = "Where they disagree"
    if not any(_answers(run) for run in runs):
        why = "Without stored answers of a teacher there is nothing to disagree with."
        return section("disagreement", title, missing(why))
    return section("disagreement", title, per_run(runs, partial(_of, budget=budget)))


def _answers(run: RunFolder) -> dict[str, Tensor] | None:
    """Probabilities of student and teacher, if both answer for the same classes."""
    student, teacher = run.logits("student"), run.logits("teacher")
    if student is None or teacher is None or student.shape != teacher.shape:
        return None
    return {"student": student.softmax(1), "teacher": teacher.softmax(1)}


def _of(run: RunFolder, budget: Budget) -> str:
    answers = _answers(run)
    if answers is None:
        return missing("The answers of a teacher were not stored, or are about other classes.")
    return who_is_right(run, answers) + gallery(run, answers, budget)


def who_is_right(run: RunFolder, answers: dict[str, Tensor]) -> str:
    """All samples cut into four: both right, only one of them, neither."""
    target = run.predictions["target"]
    student, teacher = (answers[who].argmax(1) for who in ("student", "teacher"))
    ours, theirs = student.eq(target), teacher.eq(target)
    parts = [
        ("both right", int((ours & theirs).sum()), "both"),
        ("only the teacher right", int((~ours & theirs).sum()), "teacher"),
        ("only the student right", int((ours & ~theirs).sum()), "student"),
        ("both wrong", int((~ours & ~theirs).sum()), "neither"),
    ]
    said = ", ".join(f"{text} {number}" for text, number, _ in parts)
    keys = swatches([(f"{text} <b>{numbers.count(number)}</b>", style) for text, number, style in parts])
    caption = (
        f"All {numbers.count(len(target))} samples by who is right. Student and teacher name the same class on "
        f"{numbers.share(student.eq(teacher).double().mean().item())} of them."
    )
    return figure(whole(parts, title="who is right", desc=said) + keys, caption)


def gallery(run: RunFolder, answers: dict[str, Tensor], budget: Budget) -> str:
    """The kept samples on which they differ, those first of which the student is surest and yet alone."""
    ids, known, columns = run.samples.get("id"), run.predictions.get("id"), _columns(run)
    if ids is None or known is None or not columns:
        return missing("No samples were kept to look at.")
    place = {int(key): row for row, key in enumerate(known)}
    differ = answers["student"].argmax(1).ne(answers["teacher"].argmax(1))
    rows = [(k, place[int(key)]) for k, key in enumerate(ids) if int(key) in place and differ[place[int(key)]]]
    rows.sort(key=lambda pair: -answers["student"][pair[1]].max().item())
    shown = rows[: budget.pictures // len(columns)]
    if not shown:
        return missing("No samples were kept on which they disagree.")
    names = run.labels(answers["student"].shape[1])
    cards = "".join(_card(run, k, row, columns, answers, names) for k, row in shown)
    caption = (
        f"{len(shown)} samples on which {role('student')} and {role('teacher')} name different classes, those first of "
        f"which the student is surest. In per cent, how sure each is."
    )
    return figure(f'<div class="gallery">{cards}</div>', caption, wide=True)


def _columns(run: RunFolder) -> dict[str, Tensor]:
    """Columns that can be shown, those first that the student is given."""
    ours = (run.roles.get("student") or {}).get("view") or []
    shown = {key: values for key, values in run.samples.items() if key != "id" and 3 <= values.dim() <= 4}
    return dict(sorted(shown.items(), key=lambda item: (item[0] not in ours, item[0])))


def _card(
    run: RunFolder, k: int, row: int, columns: dict[str, Tensor], answers: dict[str, Tensor], names: list[str]
) -> str:
    truth, number = int(run.predictions["target"][row]), int(run.predictions["id"][row])
    plates = "".join(_plate(run, column, values[k], names[truth]) for column, values in columns.items())
    said = "".join(_said(who, p[row], truth, names) for who, p in answers.items())
    return (
        f'<div class="sample"><div class="plates">{plates}</div>'
        f'<p class="truth">{name(names[truth], 24)} <small>true class, sample {number}</small></p>'
        f'<ul class="said">{said}</ul></div>'
    )


def _plate(run: RunFolder, column: str, values: Tensor, truth: str) -> str:
    planes = values if values.dim() == 3 else values[None]
    sound = is_sound(column, planes)
    given = [who for who in ("student", "teacher") if column in ((run.roles.get(who) or {}).get("view") or [])]
    whose = f", {given[0]} only" if len(given) == 1 else ""
    alt = f"{'spectrogram' if sound else 'image'} in the column {column}, true class {truth}"
    return (
        f'<div class="shot{" sound" if sound else ""}"><img src="{spectrogram(planes) if sound else picture(planes)}" '
        f'alt="{esc(alt, 160)}"><small>{name(column, 20)}{whose}</small></div>'
    )


def _said(who: str, p: Tensor, truth: int, names: list[str]) -> str:
    best = int(p.argmax())
    sign, verdict = ("✓", "right") if best == truth else ("✗", "wrong")
    return (
        f"<li>{role(who)} <b>{name(names[best], 24)}</b> "
        f'<span class="sign {verdict}" role="img" aria-label="{verdict}">{sign}</span> '
        f"<small>{numbers.share(p[best].item(), 0)}</small></li>"
    )
