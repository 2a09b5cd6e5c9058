"""Tables and sentences out of what `limbeck compare` found, for docs/evidence.md, docs/methods.md and the methods' cards."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

Arm = Mapping[str, Any]
BASES = ("supervised", "kd")


def spread(row: Mapping[str, Any]) -> str:
    """Mean ± standard deviation."""
    return f"{row['mean']:.3f}" + ("" if row["sd"] is None else f" ± {row['sd']:.3f}")


def interval(difference: Mapping[str, Any]) -> str:
    """Mean (low to high)."""
    mean = f"{difference['mean']:+.3f}"
    if difference["low"] is None:
        return f"{mean} (one seed: no interval)"
    return f"{mean} ({difference['low']:+.3f} to {difference['high']:+.3f})"


def verdict(difference: Mapping[str, Any]) -> str:
    """Whether the interval leaves out zero."""
    low, high = difference["low"], difference["high"]
    if low is None or low <= 0 <= high:
        return "not told apart from"
    return "better than" if low > 0 else "worse than"


def against(arm: Arm, base: str) -> Mapping[str, Any] | None:
    """The difference to an arm over the seeds, where there is one."""
    return ((arm["differences"] or {}).get(base) or {}).get("seeds")


def oriented(problem: Mapping[str, Any], difference: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The difference with above zero as better: turned round where less of the metric is."""
    if difference is None or problem.get("higher_is_better", True):
        return difference
    low, high = (None if difference[key] is None else -difference[key] for key in ("high", "low"))
    return {"mean": -difference["mean"], "low": low, "high": high}


def table(problem: Mapping[str, Any]) -> list[str]:
    """One row per arm, the best mean first; what failed last, with its reason."""
    arms = sorted(problem["arms"], key=lambda arm: (arm["mean"] is None, -(arm["mean"] or 0)))
    lines = [
        f"| arm | {problem['metric']} | minus supervised (95 %) | minus kd (95 %) | seconds |",
        "|---|---|---|---|---|",
    ]
    for arm in arms:
        if arm["mean"] is None:
            reason = arm["failed"][0]["reason"] if arm["failed"] else "not run"
            lines.append(f"| {arm['arm']} | failed: {reason} | | | |")
            continue
        told = [interval(d) if (d := against(arm, base)) else "" for base in BASES]
        missing = f" ({arm['finished']} of {arm['planned']} runs)" if arm["finished"] < arm["planned"] else ""
        lines.append(
            f"| {arm['arm']} | {spread(arm)}{missing} | {told[0]} | {told[1]} | {arm['cost']['seconds']:.0f} |"
        )
    return lines


def sentences(problem: Mapping[str, Any]) -> list[str]:
    """Who is told apart from the student without a teacher, and from plain KD."""
    said = []
    for base in BASES:
        groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
        for arm in problem["arms"]:
            if (difference := against(arm, base)) is not None:
                groups[verdict(difference)].append(arm["arm"])
        told = [f"{words.rsplit(' ', 1)[0]}: {', '.join(names)}" for words, names in groups.items() if names]
        if told:
            said.append(f"Against {base}, {'; '.join(told)}.")
    return said


def section(found: Mapping[str, Any], title: str, problem: Mapping[str, Any]) -> str:
    """One comparison: table, sentences."""
    return "\n".join([f"#### {title}\n", *table(problem), "", " ".join(sentences(problem)), ""])


def single(found: Mapping[str, Any]) -> str:
    """An evidence file with one comparison."""
    teachers = statistics.fmean(found["teachers"])
    head = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]}. {len(found['seeds'])} seeds, {found['train']['epochs']} epochs; "
        f"teachers {teachers:.3f} on average; nothing tuned. {found['minutes']:.0f} minutes by the clock of a busy machine.\n",
    ]
    body = [*table(found), "", " ".join(sentences(found)), "", f"Again: `{found['command']}`\n"]
    return "\n".join([*head, *body])


def across(found: Mapping[str, Any]) -> str:
    """An evidence file with several targets and roads."""
    teachers = ", ".join(f"{name} {statistics.fmean(values):.3f}" for name, values in found["teachers"].items())
    text = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]}. {len(found['seeds'])} seeds, {found['train']['epochs']} epochs, {found['trials']} tuning "
        f"trials per arm. Teachers: {teachers}. {found['minutes']:.0f} minutes by the clock of a busy machine.\n",
        *(
            section(found, f"{found['dataset']}: the student sees {name}", problem)
            for name, problem in found["targets"].items()
        ),
        f"Again: `{found['command']}`\n",
    ]
    return "\n".join(text)


def roads(files: Iterable[Mapping[str, Any]]) -> str:
    """Over all data sets and targets: per method and road, the mean rank and how often it was told apart."""
    rows: dict[tuple[str, str], list[Arm]] = {}
    ranks: dict[tuple[str, str], list[float]] = {}
    for road in ("multimodal", "other"):
        for problem in (p for found in files for p in found["targets"].values()):
            arms = [arm for arm in problem["arms"] if road_of(arm) in (road, "any") and arm["mean"] is not None]
            for arm in arms:
                key = (road, arm["method"])
                rows.setdefault(key, []).append(arm)
                better = sum(other["mean"] > arm["mean"] for other in arms)
                equal = sum(other["mean"] == arm["mean"] for other in arms)
                ranks.setdefault(key, []).append(better + (equal + 1) / 2)
    lines = [
        "| learns from | method | mean rank | better than supervised | worse | better than kd | worse | comparisons |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (road, method), arms in sorted(rows.items(), key=lambda item: (item[0][0], statistics.fmean(ranks[item[0]]))):
        counts = []
        for base in BASES:
            verdicts = [verdict(d) for arm in arms if (d := against(arm, base))]
            counts += [verdicts.count("better than"), verdicts.count("worse than")] if verdicts else ["", ""]
        told = " | ".join(map(str, counts))
        who = "all modalities" if road == "multimodal" else "another modality"
        lines.append(f"| {who} | {method} | {statistics.fmean(ranks[road, method]):.1f} | {told} | {len(arms)} |")
    return "\n".join([*lines, ""])


def road_of(arm: Arm) -> str:
    """`multimodal`, `other` or, for the student alone, `any`; out of the arm's name."""
    if arm["method"] == "supervised":
        return "any"
    return "multimodal" if "from all" in arm["arm"] or "from both" in arm["arm"] else "other"


def by_method(files: Iterable[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What every evidence file says of every method: where, against whom, by how much."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        for where, problem in problems(file):
            for arm in problem["arms"]:
                for base in problem.get("bases", BASES):
                    difference = oriented(problem, against(arm, base))
                    if difference is not None and "+" not in arm["method"]:
                        found.setdefault(arm["method"], []).append(
                            {"data": where, "arm": arm["arm"], "than": base, "seeds": arm["finished"]}
                            | {
                                key: round(difference[key], 4)
                                for key in ("mean", "low", "high")
                                if difference[key] is not None
                            }
                        )
    return dict(sorted(found.items()))


def problems(file: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "targets" in file:
        words = file.get("targets_are", "student sees")
        yield from ((f"{file['dataset']}, {words} {name}", problem) for name, problem in file["targets"].items())
    elif file.get("kind") == "generation":  # a problem per number of evaluations
        for n in sorted({arm["evaluations"] for arm in file["arms"]}):
            arms = [arm for arm in file["arms"] if arm["evaluations"] == n]
            yield f"{file['dataset']}, {n} step{'s' if n > 1 else ''}", {**file, "arms": arms}
    elif "arms" in file and isinstance(file["arms"], list):
        yield file["dataset"], file
