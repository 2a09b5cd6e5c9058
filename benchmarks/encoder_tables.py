"""The part of docs/evidence.md on encoders of texts, out of benchmarks/evidence/encoders-*.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comparison_tables import against, interval, sentences, spread, verdict

HEAD = """## Encoders of texts

A teacher of four layers, trained here from nothing on the labels, and students of two layers and of one: with new weights, or begun
with layers of the teacher (`student: {model: TEACHER, layers: 2}`). Same batches, steps and learning rate for all; every method with
its defaults, nothing tuned, so the loss of each is weighted as its authors weighted it for other data and long trainings (TinyBERT
looks at no label, for one). One teacher per data set: the intervals tell about the students' seeds. Retention is the student's
accuracy divided by the teacher's. Times were taken on a busy machine, one thread, the depths in turn; the speed-up is the median of the
ratios of each turn. Students with new weights have hardly begun to learn after so few steps; that is the point of the
comparison with those that have not to begin.
"""


def table(problem: Mapping[str, Any], teacher: float) -> list[str]:
    """One row per arm, the best mean first."""
    lines = [
        "| method | accuracy | retention | minus supervised (95 %) | minus kd (95 %) |",
        "|---|---|---|---|---|",
    ]
    for arm in sorted(problem["arms"], key=lambda arm: -arm["mean"]):
        told = [interval(d) if (d := against(arm, base)) else "" for base in ("supervised", "kd")]
        lines.append(f"| {arm['arm']} | {spread(arm)} | {arm['mean'] / teacher:.3f} | {' | '.join(told)} |")
    return lines


def sizes(found: Mapping[str, Any]) -> list[str]:
    """What each depth costs."""
    rows = [
        f"| {row['layers']} | {row['parameters']:,} | {row['bytes'] / 1e6:.2f} MB | {row['ms_for_32_texts']:.1f} | {row['faster']:.2f}x |"
        for row in found["sizes"]
    ]
    return ["| layers | parameters | size | ms for 32 texts | speed-up |", "|---|---|---|---|---|", *rows]


def worth(found: Mapping[str, Any]) -> str:
    """What beginning with the teacher's layers is worth, in sentences."""
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for row in found["inherited"]:
        groups[verdict(row)].append(f"{row['arm']} with {row['depth']} {interval(row)}")
    told = [f"{words.rsplit(' ', 1)[0]}: {'; '.join(rows)}" for words, rows in groups.items() if rows]
    return f"Begun with the teacher's layers, against the same method with new weights, {'. '.join(told)}."


def section(found: Mapping[str, Any]) -> str:
    """One data set."""
    text = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]}. Teacher {found['teacher']:.3f} after {found['teacher_steps']} steps; students "
        f"{found['train']['steps']} steps of {found['train']['batch_size']} texts, {len(found['seeds'])} seeds.\n",
        *sizes(found),
        "",
    ]
    for name, problem in found["targets"].items():
        text += [
            f"#### {found['dataset']}: {name}\n",
            *table(problem, found["teacher"]),
            "",
            " ".join(sentences(problem)),
            "",
        ]
    return "\n".join([*text, worth(found), "", f"Again: `{found['command']}`\n"])
