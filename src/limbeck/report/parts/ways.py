"""The ways from noise to samples: the noisy sample in every step, and what each step takes for the sample."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from limbeck.evaluation.samples import Generated
from limbeck.report import numbers
from limbeck.report.budget import Budget
from limbeck.report.charts.plane import Point, Way, Window, ways
from limbeck.report.folder import RunFolder
from limbeck.report.markup import esc, figure, legend, missing, name, panels, role
from limbeck.report.pictures import picture

COLOURS = 8
SHOWN = ("teacher", "student")
UNITS = {
    "flow": "shares of noise (1 is noise alone)",
    "vp": "steps of noising (the last one is noise alone)",
    "ve": "standard deviations of the noise",
}
X_T, X_0 = "x<sub>t</sub>", "x<sub>0</sub>"
KINDS = {
    "states": (
        "From noise to the sample",
        "x_t",
        f"The noisy sample {X_T} as it goes from noise to the sample",
    ),
    "denoised": (
        "What each step takes for the sample",
        "x0",
        f"The diffusion target: the sample {X_0} that is predicted from {X_T} in every step (Gandikota and Bau, arXiv 2503.10637)",
    ),
}


def ways_of_points(run: RunFolder) -> str:
    """Two figures of lines in the plane, teacher and student on the same axes."""
    return "".join(_lines(run, what) for what in KINDS)


def ways_of_pictures(run: RunFolder, budget: Budget) -> str:
    """Two figures of strips, a strip for each network under the other's."""
    rows = budget.pictures // 6
    return "".join(_strips(run, what, max(1, rows)) for what in KINDS) if budget.pictures else ""


def classes(seen: Generated) -> list[str]:
    """The classes that were asked for, where there are some and no more than colours."""
    found = sorted(set(seen.conditions)) if seen.classes else []
    return found if 1 < len(found) <= COLOURS else []


def columns(steps: int, of: int) -> list[int]:
    """Where so many pictures stand among the columns 1 to `of`, from the first to the last, each in one of its own."""
    return [1 + round(i * (of - 1) / max(steps - 1, 1)) for i in range(steps)]


def _lines(run: RunFolder, what: str) -> str:
    seen, (title, _, said) = run.generated, KINDS[what]
    found = {who: values for who in SHOWN if (values := seen.of(who, what)) is not None}
    if not found:
        return missing(f"{title}: no way was kept, since no network that denoises step by step was there.")
    real = seen.of("real")
    behind: list[Point] = [(x, y) for x, y in real.tolist()] if real is not None else []
    everywhere = [(x, y) for values in found.values() for x, y in values.flatten(0, 1).tolist()]
    window = Window.around([*behind, *everywhere] if what == "states" else behind, everywhere)
    styles, keys = _styles(run, len(next(iter(found.values()))))
    charts = []
    for who, values in found.items():
        times = [numbers.plain(t) for t in _times(run, who, what)]
        lines = [
            Way(
                [(x, y) for x, y in places.tolist()],
                [
                    f"{_called(run, i)}, time {t}: {numbers.plain(x)}, {numbers.plain(y)}"
                    for t, (x, y) in zip(times, places.tolist())
                ],
                styles[i],
            )
            for i, places in enumerate(values)
        ]
        desc = f"{len(lines)} rows at times {', '.join(times)}"
        chart = ways(lines, behind, window, title=f"{title}: {who}", desc=desc)
        charts.append(f'<p class="over">{role(who)} <span>{_steps(run, who)}</span></p>{chart}')
    drawn = "A ring is where a line begins, the large dot where it ends; the small ones are the steps between. Faint: the data."
    caption = " ".join([f"{said}.", _alike(run, list(found)), drawn, *_notes(run, list(found), what)])
    return figure(panels(*charts, least=17) + legend(keys), caption, wide=True)


def _styles(run: RunFolder, count: int) -> tuple[list[str], list[tuple[str, str]]]:
    """The class that draws each line, and what it stands for: what was asked for, or the row."""
    seen = run.generated
    kinds = classes(seen)
    if not kinds:
        styles = [f"c{i % COLOURS}" for i in range(count)]
        return styles, [(_called(run, i), style) for i, style in enumerate(styles)]
    asked = [seen.conditions[int(place)] for place in seen.tensors["ways"][:count]]
    return [f"c{kinds.index(a)}" for a in asked], [(k, f"c{i}") for i, k in enumerate(kinds) if k in asked]


def _strips(run: RunFolder, what: str, rows: int) -> str:
    seen, (title, short, said) = run.generated, KINDS[what]
    found = {who: values for who in SHOWN if (values := seen.of(who, what)) is not None}
    if not found:
        return missing(f"{title}: no way was kept, since no network that denoises step by step was there.")
    # one column more than predictions, so that x0 stands where its x_t stands in the figure before
    across = max(len(_times(run, who, "states")) for who in found)
    blocks = []
    for i in range(min(rows, len(next(iter(found.values()))))):
        strips = "".join(_strip(run, who, what, short, i, values[i], across) for who, values in found.items())
        blocks.append(f'<div class="way"><p class="truth">{name(_called(run, i), 60)}</p>{strips}</div>')
    notes = _notes(run, list(found), what)
    caption = " ".join([f"{said}; below each its time.", _alike(run, list(found)), *notes])
    return figure(f'<div class="ways" style="--across:{across}">{"".join(blocks)}</div>', caption, wide=True)


def _strip(run: RunFolder, who: str, what: str, short: str, i: int, values: Tensor, across: int) -> str:
    times = [numbers.plain(t) for t in _times(run, who, what)]
    places = columns(len(_times(run, who, "states")), across)
    shots = "".join(
        f'<span style="grid-column:{place}"><img src="{picture(shot.float() / 255)}" alt=""><small>{t}</small></span>'
        for place, shot, t in zip(places, values, times)
    )
    alt = esc(f"{who}, {_called(run, i)}: {short} at times {', '.join(times)}", 400)
    return f'<p class="over">{role(who)} <span>{_steps(run, who)}</span></p><div class="film" role="img" aria-label="{alt}">{shots}</div>'


def _times(run: RunFolder, who: str, what: str) -> list[float]:
    """The times of what is shown: the predictions have none at the end, where nothing is left to predict."""
    times = run.generated.of(who, "times")
    found: list[float] = [] if times is None else times.tolist()
    return found if what == "states" else found[:-1]


def _called(run: RunFolder, i: int) -> str:
    """One of the rows whose way is shown, by what was asked for and its number."""
    seen = run.generated
    place = int(seen.tensors["ways"][i])
    number = f"row {int(seen.tensors['id'][place])}"
    return f"{seen.conditions[place]}, {number}" if seen.conditions else number


def _steps(run: RunFolder, who: str) -> str:
    steps, shown = numbers.real(run.generated.facts.get(who, {}).get("steps")), len(_times(run, who, "denoised"))
    taken = shown if steps is None else int(steps)
    few = f", {shown} of them shown" if shown < taken else ""
    return f"{taken} {'step' if taken == 1 else 'steps'}{few}"


def _alike(run: RunFolder, who: Sequence[str]) -> str:
    if len(who) < 2:
        return ""
    same = run.generated.facts.get("teacher", {}).get("same_noise")
    return (
        "Both begin with the same noise."
        if same
        else "Their noises differ: the networks do not denoise the same values."
    )


def _notes(run: RunFolder, who: Sequence[str], what: str) -> list[str]:
    """What one must know to read the figure."""
    facts = {one: run.generated.facts.get(one, {}) for one in who}
    noises = list(dict.fromkeys(str(f.get("noise")) for f in facts.values()))
    said = [f"Times are {UNITS[noise]}." for noise in noises if noise in UNITS][:1] if len(noises) == 1 else []
    if len(noises) > 1:
        said += [
            f"Times of the {one} are {UNITS[str(f.get('noise'))]}."
            for one, f in facts.items()
            if f.get("noise") in UNITS
        ]
    if what == "states":
        again = [one for one, f in facts.items() if f.get("solver") == "renoise" and (f.get("steps") or 0) > 1]
        said += [f"Between its steps the {one} is given noise anew, so that its way jumps." for one in again]
        if "ve" in noises:
            said.append(
                f"Where noise is added on top (VE), {X_T} is divided by √(1 + σ²), to be of one size all the way."
            )
    if any(f.get("latent") for f in facts.values()):
        said.append("Latents are shown decoded.")
    return said
