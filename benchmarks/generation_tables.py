"""The part of docs/evidence.md on generators, out of benchmarks/evidence/generation-*.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from comparison_tables import against, interval, spread, verdict

from limbeck.evaluation import intervals

HEAD = """## Generators of one to four steps

Each student begins as a flow that was trained on the data (for the points: on samples of a teacher that is a formula), and has the same
CPU time of one core with every method, whatever a step costs; less is better in the distances. No method is guided, so that all of them
aim at the same distribution. `denoising, more of it` is the student without a teacher: the same time spent on what it was trained with.
Of three learning rates each method took the best by another seed and against training rows (mnist takes those of digits). Methods have their
defaults but for what `ARMS` in benchmarks/generation.py says of each. Two of these are no matter of course: GDD has its published optimiser, Adam with betas of
0 and 0.99, since a first look with AdamW (the only arm that had a second try), and SCott's discriminator learns as fast as the student. Differences are paired by seed (Student's t). One teacher per set, so intervals tell about trainings, not about teachers.

Minutes of one core are far from the days on many devices of the papers. Sets this small have simple flows, which regression to their ends and consistency
learn within seconds, while a critic must first be learnt and then be followed for as long as the student moves. That was our reading of why the papers' order
does not show on digits; `digits-longer` puts it to the test, with four times the time for those that had not settled: what was far off comes to where regression is, or near to it,
but for GDD; distribution matching has the smaller mean there and is not told apart from regression by three seeds; and SIM stays behind SiD.
"""
# what the papers say, as differences that can be looked at: text, the better arm, the other, evaluations, figure
CLAIMS: list[tuple[str, str, str, int, str]] = [
    ("BOOT: one step is far better than the teacher's one step", "boot", "teacher, 1 steps", 1, "metric"),
    ("SwiftBrush (vsd): one step is better than the teacher's one step", "vsd", "teacher, 1 steps", 1, "metric"),
    ("DMD2: distribution matching is better than regression to the flow's ends", "dmd2", "endpoints", 1, "metric"),
    ("DMD2: five critic steps are better than one", "dmd2", "dmd2, a critic step each", 1, "metric"),
    ("DMD2: the GAN helps", "dmd2 with GAN", "dmd2", 1, "metric"),
    ("SIM: more modes are kept than by reverse KL (recall)", "sim", "dmd2", 1, "recall"),
    ("SIM: its distance is better than SiD's", "sim", "sid", 1, "metric"),
    ("SNOOPI: a drawn scale is no worse than a fixed one", "snoopi", "vsd", 1, "metric"),
    ("GDD: a GAN alone from the teacher's weights is better than regression", "gdd", "endpoints", 1, "metric"),
    ("SCott: stochastic steps and a GAN are better than LCM in two steps", "scott", "lcm", 2, "metric"),
    ("SCott: and in four", "scott", "lcm", 4, "metric"),
    ("SCott: stochastic steps alone are better than LCM in four", "scott without GAN", "lcm", 4, "metric"),
    ("SCott: the GAN helps in one step", "scott", "scott without GAN", 1, "metric"),
    ("MLCM: segments are better than consistency in four steps", "mlcm", "consistency", 4, "metric"),
    ("TDM: at four steps it is no worse than DMD2", "tdm", "dmd2", 4, "metric"),
    ("TDM: at four steps it is better than consistency", "tdm", "consistency", 4, "metric"),
    ("TwinFlow: in one step it is better than flow matching", "twinflow", "denoising, more of it", 1, "metric"),
    ("TwinFlow: it comes near to DMD2 without a critic", "twinflow", "dmd2", 1, "metric"),
    ("Progressive: four steps are better than the teacher's four", "progressive", "teacher, 4 steps", 4, "metric"),
]
HIGHER = {"recall", "precision", "density", "coverage", "conditional_accuracy", "diversity", "modes"}


def sections(sets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every set of data; one that is another with more time comes after it, and has its figures beside its own."""
    named = {found["dataset"]: found for found in sets}
    in_order = sorted(sets, key=lambda found: (found.get("longer") or found["dataset"], bool(found.get("longer"))))
    return [section(found, named.get(found.get("longer") or "")) for found in in_order]


def section(found: Mapping[str, Any], shorter: Mapping[str, Any] | None = None) -> str:
    """One set of data: references, methods, and what the papers say; `shorter`: the same with less time."""
    metric = found["metric"]
    counts = sorted({arm["evaluations"] for arm in found["arms"]})
    further = ["recall", "conditional_accuracy"] if metric == "frechet" else ["recall", "modes"]
    heads = [f"{n} step{'s' if n > 1 else ''}" for n in counts]
    before = _by(shorter) if shorter is not None else {}
    heads += [f"{head} in {shorter['cpu_seconds']:.0f} s" for head in heads] if shorter is not None else []
    lines = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]}. {metric.replace('_', ' ').capitalize()}; {found['cpu_seconds']:.0f} s of CPU time "
        f"per training; {len(found['seeds'])} seeds. Recall and the last column are at the fewest steps that were measured.\n",
        f"| method | {' | '.join(heads)} | {' | '.join(name.replace('_', ' ') for name in further)} | training steps |",
        "|---" * (len(heads) + len(further) + 2) + "|",
    ]
    by = _by(found)
    for name in ordered(found):
        arms = {n: by.get((name, n)) for n in counts}
        if not any(arm is not None and arm["finished"] + len(arm["failed"]) for arm in arms.values()):
            continue
        least = next(arm for arm in arms.values() if arm is not None)
        cells = ["" if arm is None else _shown(arm, metric, len(found["seeds"])) for arm in arms.values()]
        for n in counts if before else []:
            cells.append(_shown(before[name, n], metric, len(found["seeds"])) if (name, n) in before else "")
        more = [f"{least['mean'][key]:.2f}" if key in least["mean"] else "" for key in further]
        trained = " / ".join(dict.fromkeys(f"{arm['steps']:,}" for arm in arms.values() if arm is not None))
        lines.append(f"| {name} | {' | '.join([*cells, *more])} | {trained} |")
    lines += ["", _references(found), "", *_told(found), "", *_claims(found), "", f"Again: `{found['command']}`\n"]
    return "\n".join(lines)


def ordered(found: Mapping[str, Any]) -> list[str]:
    """Arms, the best at the fewest steps first; those that failed last."""
    by, best = _by(found), {}
    for (name, n), arm in sorted(by.items(), key=lambda item: item[0][1]):
        best.setdefault(name, (n, arm["mean"].get(found["metric"], float("inf"))))
    return sorted(best, key=lambda name: best[name])


def _by(found: Mapping[str, Any]) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {(arm["arm"], arm["evaluations"]): arm for arm in found["arms"]}


def _shown(arm: Mapping[str, Any], metric: str, seeds: int) -> str:
    if not arm["mean"]:
        return "failed"
    row = {"mean": arm["mean"][metric], "sd": arm["sd"].get(metric)}
    failed = f" ({len(arm['failed'])} failed)" if arm["failed"] else ""
    return spread(row) + (failed or (f" ({arm['finished']} of {seeds} seeds)" if arm["finished"] < seeds else ""))


def _references(found: Mapping[str, Any]) -> str:
    metric = found["metric"]
    said = [
        f"{name.replace(' 1 steps', ' 1 step')} {statistics.fmean(one[metric] for one in runs):.3f}"
        for name, runs in found["references"].items()
    ]
    return f"For comparison: {'; '.join(said)}."


def _told(found: Mapping[str, Any]) -> list[str]:
    said = []
    for base in ("endpoints", "consistency"):
        for n in sorted({arm["evaluations"] for arm in found["arms"]}):
            groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
            for arm in found["arms"]:
                if arm["evaluations"] == n and (d := against(arm, base)) is not None:
                    groups[verdict(_turned(d))].append(arm["arm"])
            told = [f"{words.rsplit(' ', 1)[0]}: {', '.join(names)}" for words, names in groups.items() if names]
            if told:
                said.append(f"Against {base} with {n} step{'s' if n > 1 else ''}, {'; '.join(told)}.")
    return said


def _claims(found: Mapping[str, Any]) -> list[str]:
    """What the papers say, and whether it is seen."""
    by, lines = _by(found), []
    for text, one, other, n, figure in CLAIMS:
        name = found["metric"] if figure == "metric" else figure
        ours = {seed: f[name] for seed, f in by[one, n]["values"].items()} if (one, n) in by else {}
        if other in found["references"]:
            theirs = {str(s): f[name] for s, f in zip(found["seeds"], found["references"][other])}
        else:
            theirs = {seed: f[name] for seed, f in by[other, n]["values"].items()} if (other, n) in by else {}
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        if len(pairs) < 2:
            continue
        d = intervals.paired_t(pairs)
        difference = {"mean": d.mean, "low": d.low, "high": d.high}
        seen = verdict(difference if name in HIGHER else _turned(difference))
        word = {"better than": "yes", "worse than": "no, the other way round", "not told apart from": "not told apart"}
        lines.append(f"| {text} | {word[seen]} | {interval(difference)} |")
    return ["| what the paper says | here | difference (95 %) |", "|---|---|---|", *lines] if lines else []


def _turned(difference: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (None if difference[key] is None else -difference[key] for key in ("high", "low"))
    return {"mean": -difference["mean"], "low": low, "high": high}


FURTHER = """### Beyond few steps

On the 8x8 digits, with the teacher of above: what four methods are for that no table of few steps shows. Differences are paired by seed.
"""


def further(found: Mapping[str, Any]) -> str:
    """DMM, PSO, diversity and DDAE++, as far as they were measured."""
    parts = [FURTHER]
    if merging := found.get("merging"):
        parts += [
            "**DMM.** Three teachers (inverted, bold, slanted digits) become one student that is told which to be. Frechet distance of its samples "
            "to those of the teacher that it is to be, mean of the three:\n",
            *_rows("one network for three styles", {"frechet": merging["frechet"]}, {"frechet": merging["against"]}),
            "",
        ]
    if rewarded := found.get("rewarded"):
        parts += [
            "**PSO.** A student of four steps (DMD2, trained as on digits-longer) is to draw bolder; the reward is the mean ink. Beside it the same number of steps of denoising on "
            "the boldest third of the data:\n",
            *_rows("four steps", {name: rewarded[name] for name in ("ink", "frechet")}, rewarded["against"]),
            "",
        ]
    if begun := found.get("begun"):
        parts += [
            "**Diversity.** The teacher takes the first of the four steps, as many as the row says:\n",
            *_rows("its steps", {name: begun[name] for name in begun if name != "against"}, begun["against"]),
            "",
        ]
    if featured := found.get("featured"):
        parts += [
            f"**DDAE++.** Networks trained from nothing for {featured['steps']:,} steps, without classes, all on augmented data; accuracy of a linear "
            "probe of their features on test rows (layer and noise level chosen on validation), and Frechet distance of samples of 20 steps:\n",
            *_rows("training", {name: featured[name] for name in ("probe", "frechet")}, featured["against"]),
            "",
        ]
    return "\n".join([*parts, f"Again: `{found['command']}`\n"])


def _rows(head: str, figures: Mapping[str, Mapping[str, list[float]]], against_: Mapping[str, Any]) -> list[str]:
    """A row per arm: every figure, and its difference to the base."""
    names = list(figures)
    told = [f"{name.replace('_', ' ')} | minus the first (95 %)" for name in names]
    lines = [f"| {head} | {' | '.join(told)} |", "|---" * (2 * len(names) + 1) + "|"]
    for arm in figures[names[0]]:
        cells = []
        for name in names:
            values, difference = figures[name][arm], against_[name].get(arm)
            row = {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None}
            cells += [spread(row), interval(difference) if difference else ""]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines
