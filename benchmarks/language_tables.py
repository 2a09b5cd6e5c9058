"""The part of docs/evidence.md on language models, out of benchmarks/evidence/language-*.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comparison_tables import against, interval, oriented, spread, verdict

HEAD = """## Language models

A Llama of 10 M parameters, trained here on the texts, teaches students of 0.9 M. Every student of a seed goes on from the same
student, which has read the texts for {start} steps; then every arm has {steps} steps on the same texts, `supervised` among
them. Methods run with their defaults (64 written tokens where one writes), nothing is tuned. Bits per byte of held-out texts,
less is better; differences are paired by seed (Student's t), below zero is better than reading on without a teacher. What the
students write is judged by the teacher (nats per token, at temperature 1) and by how many of its pairs and triples of tokens are
different: a model that repeats itself is likely to a judge and not varied. One teacher, so the intervals tell about students. Seconds
are by the clock of a busy machine, measuring included. SeqKD learns the most probable continuations, which are not what the texts
say: its bits are more, and what it writes repeats itself.
"""


def table(found: Mapping[str, Any]) -> list[str]:
    """One row per arm, the fewest bits first."""
    lines = [
        "| arm | bits per byte | minus supervised (95 %) | teacher's nats per token written | distinct pairs | distinct triples | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in sorted(found["arms"], key=lambda arm: arm["mean"]):
        told = interval(d) if (d := against(arm, "supervised")) else ""
        wrote = found["wrote"].get(arm["arm"], {})
        shown = [f"{wrote[key]:.3f}" if key in wrote else "" for key in ("judged_nll", "distinct_2", "distinct_3")]
        lines.append(f"| {arm['arm']} | {spread(arm)} | {told} | {' | '.join(shown)} | {arm['cost']['seconds']:.0f} |")
    return lines


def sentences(found: Mapping[str, Any]) -> str:
    """Who is told apart from reading on without a teacher."""
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for arm in found["arms"]:
        if (difference := oriented(found, against(arm, "supervised"))) is not None:
            groups[verdict(difference)].append(arm["arm"])
    told = [f"{words.rsplit(' ', 1)[0]}: {', '.join(names)}" for words, names in groups.items() if names]
    return f"Against supervised, {'; '.join(told)}."


def head(found: Mapping[str, Any]) -> str:
    """What all sets have in common."""
    return HEAD.format(start=found["start"]["steps"], steps=found["train"]["steps"])


def section(found: Mapping[str, Any]) -> str:
    """One set of texts."""
    teacher = found["wrote"].get("the teacher", {})
    judged = f", {teacher['judged_nll']:.3f} nats per token of its own continuations" if "judged_nll" in teacher else ""
    return "\n".join(
        [
            f"### {found['dataset']}\n",
            f"{found['notes']}. The teacher has {found['teacher']:.3f} bits per byte{judged}. {len(found['seeds'])} seeds, "
            f"{found['samples']} held-out rows.\n",
            *table(found),
            "",
            sentences(found),
            "",
            f"Again: `{found['command']}`\n",
        ]
    )
