"""What a generator makes: the same rows by everyone, the ways from noise to them, and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from limbeck.report import numbers
from limbeck.report.budget import Budget
from limbeck.report.charts.plane import Cloud, Point, Window, clouds, key
from limbeck.report.folder import ROLES, RunFolder
from limbeck.report.markup import Cell, esc, figure, missing, name, panels, per_run, role, section, table
from limbeck.report.parts.ways import classes, ways_of_pictures, ways_of_points
from limbeck.report.pictures import picture

ACROSS = 8  # pictures beside each other
EVERYONE = ("real", *ROLES)


def samples(runs: Sequence[RunFolder], budget: Budget) -> str:
    """The section on samples; runs that generate nothing have none."""
    if not any(run.task.get("name") == "generation" for run in runs):
        return ""
    return section("samples", "What it generates", per_run(runs, partial(_of, budget=budget)))


def _of(run: RunFolder, budget: Budget) -> str:
    seen = run.generated
    if seen.kind == "points" and seen.of("student") is not None:
        return samples_of_points(run) + ways_of_points(run) + costs(run)
    if seen.kind == "pictures" and seen.of("student") is not None:
        return samples_of_pictures(run, budget) + ways_of_pictures(run, budget) + costs(run)
    why = (
        f"Samples of shape {list(seen.shape)} are neither points in the plane nor pictures of one or three channels, so none is shown."
        if seen.shape
        else "No samples were kept to look at."
    )
    return missing(why) + costs(run)


def samples_of_points(run: RunFolder) -> str:
    """Everyone's points on the same axes, beside each other."""
    seen = run.generated
    found: dict[str, list[Point]] = {}
    for who in EVERYONE:
        if (values := seen.of(who)) is not None:
            found[who] = [(x, y) for x, y in values.tolist()]
    window = Window.around(found.get("real", []), [p for who, points in found.items() if who != "real" for p in points])
    kinds = classes(seen)
    charts = []
    for who, points in found.items():
        parts = [
            Cloud(kind, [p for p, asked in zip(points, seen.conditions) if asked == kind], f"c{i}", i)
            for i, kind in enumerate(kinds)
        ] or [Cloud(who, points, who)]
        outside = window.outside(points)
        said = _described(points) + (f"; {outside} lie outside and are drawn at the edge" if outside else "")
        beside = f" <span>{outside} outside</span>" if outside else ""
        chart = clouds(parts, window, title=f"samples: {_plainly(who)}", desc=said)
        charts.append(f'<p class="over">{head(who)}{beside}</p>{chart}')
    keys = "".join(f"<li>{key(f'c{i}', i)}{name(kind, 40)}</li>" for i, kind in enumerate(kinds))
    caption = f"{_rows(run, len(found['student']))}, on the same axes.{' Colour and shape say which class was asked for.' if keys else ''}"
    legend = f'<ul class="legend">{keys}</ul>' if keys else ""
    return figure(panels(*charts, least=13) + legend, caption, wide=True)


def samples_of_pictures(run: RunFolder, budget: Budget) -> str:
    """A row of the grid for everyone, a column for every row of the data, its condition below."""
    seen = run.generated
    found = {who: values for who in EVERYONE if (values := seen.of(who)) is not None}
    count = min(len(found["student"]), 2 * budget.pictures // 3)
    if not count:
        return missing("There is no room for samples on this page; the page of this run alone has them.")
    ids = seen.tensors["id"].tolist()
    bands = []
    for first in range(0, count, ACROSS):
        places = range(first, min(first + ACROSS, count))
        for who, values in found.items():
            cells = "".join(_cell(who, values[i], _asked(run, i, ids[i])) for i in places)
            bands.append(f'<tr><th scope="row">{head(who)}</th>{cells}</tr>')
        if seen.conditions:
            below = "".join(f"<td>{name(seen.conditions[i], 60)}</td>" for i in places)
            bands.append(f'<tr class="asked"><th scope="row">asked for</th>{below}</tr>')
        bands.append("</tbody><tbody>")
    body = "".join(bands[:-1])
    shown = f'<div class="scroll" tabindex="0" role="region" aria-label="samples"><table class="samples"><tbody>{body}</tbody></table></div>'
    caption = f"{_rows(run, count)}{', with what was asked for below' if seen.conditions else ''}."
    return figure(shown, caption, wide=True)


def costs(run: RunFolder) -> str:
    """How everyone samples, how often the network is called for that, and how long it takes."""
    roles = {who: model for who, model in run.roles.items() if _calls(model) is not None}
    if not roles:
        return missing("It was not measured how often the networks are called for a sample.")
    timed = any(isinstance(model.get("speed"), dict) for model in roles.values())
    top = roles.get("teacher")
    rows = []
    for who, model in roles.items():
        calls, latency = _calls(model), _latency(model)
        row = [
            Cell(role(who), who, numeric=False),
            Cell(esc(how(run.generated.facts.get(who, {}))), numeric=False),
            _number(calls, numbers.count),
            _number(latency, numbers.milliseconds),
            _number(_ratio(latency, calls), numbers.milliseconds),
        ]
        if timed:
            speed = model.get("speed") or {}
            row += [_number(speed.get("p95_ms"), numbers.milliseconds)]
            row += [_number(speed.get("samples_per_second"), numbers.plain)]
        if top is not None:
            pairs = ((_calls(top), calls), (_latency(top), latency))
            row += [_number(_ratio(*pair) if who != "teacher" else None, numbers.times) for pair in pairs]
        rows.append(row)
    heads = ["model", "how it samples", "evaluations", "latency", "per evaluation"]
    heads += ["95 % within", "samples per second"] if timed else []
    heads += ["fewer evaluations", "faster"] if top is not None else []
    caption = (
        "Evaluations are calls of the network for one sample (NFE). Latency is the median for one sample at a time"
    )
    if timed:
        sizes = {numbers.count((model.get("speed") or {}).get("batch_size")) for model in roles.values()}
        many = " or ".join(sorted(sizes - {numbers.NONE}))
        caption += f"; samples per second are those of a batch of {many} (the check speed)."
    else:
        caption += ", over a few samples: the check <code>speed</code>, which was not asked for, measures it more closely, and for batches."
    return figure(table(heads, rows), caption, kind="tab", wide=True)


def head(who: str) -> str:
    """A role by its name, and the data."""
    return '<span class="role real">data</span>' if who == "real" else role(who)


def how(facts: dict[str, Any]) -> str:
    """`4 steps of ddim, guidance 1.5, from 0.98 of the noise`; empty where it is not known."""
    steps = numbers.real(facts.get("steps"))
    if steps is None:
        return numbers.NONE
    said = f"{numbers.count(steps)} {'step' if steps == 1 else 'steps'} of {facts.get('solver')}"
    if facts.get("switch"):
        said += f", the first {facts['switch']} by its base model"
    for what, usual, text in (("guidance", 1, "guidance {}"), ("start", 1, "from {} of the noise")):
        value = numbers.real(facts.get(what))
        said += f", {text.format(numbers.plain(value))}" if value not in (None, usual) else ""
    return said


def _rows(run: RunFolder, count: int) -> str:
    alike = all(facts.get("same_noise") for facts in run.generated.facts.values())
    begun = " from the same noise" if alike else ", each from noise of its own shape,"
    said = "the data, and what each network makes for the same rows"
    return (
        f"{numbers.count(count)} rows of the {esc(run.result.get('split') or 'test', 30)} split: {said}{begun}".rstrip(
            ","
        )
    )


def _cell(who: str, values: Any, asked: str) -> str:
    alt = esc(f"{_plainly(who)}, {asked}", 160)
    return f'<td><img src="{picture(values.float() / 255)}" alt="{alt}"></td>'


def _asked(run: RunFolder, place: int, number: int) -> str:
    conditions = run.generated.conditions
    return conditions[place] if conditions else f"row {number}"


def _described(points: Sequence[Point]) -> str:
    """Mean and standard deviation in words."""
    count = len(points)
    means = [sum(p[k] for p in points) / count for k in (0, 1)]
    spread = [(sum((p[k] - m) ** 2 for p in points) / count) ** 0.5 for k, m in enumerate(means)]
    said = [", ".join(map(numbers.plain, pair)) for pair in (means, spread)]
    return f"{count} points; mean ({said[0]}), standard deviation ({said[1]})"


def _plainly(who: str) -> str:
    return "data" if who == "real" else who


def _calls(model: dict[str, Any]) -> float | None:
    return numbers.real((model.get("figures") or {}).get("evaluations"))


def _latency(model: dict[str, Any]) -> float | None:
    """Milliseconds for one sample: those of the check `speed`, where it was asked for."""
    closely = numbers.real((model.get("speed") or {}).get("median_ms"))
    return numbers.real(model.get("latency_ms")) if closely is None else closely


def _ratio(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _number(value: Any, write: Callable[[Any], str]) -> Cell:
    known = numbers.real(value)
    return Cell(write(known), "" if known is None else known)
