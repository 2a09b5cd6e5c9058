"""docs/evidence.md, docs/methods.md and what the cards say of evidence, out of committed figures and the cards themselves.

python benchmarks/tables.py            # writes all three
python benchmarks/tables.py --check    # exits with 1 when one of them is not what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import draft_tables  # noqa: E402
import encoder_tables  # noqa: E402
import generation_tables  # noqa: E402
import language_tables  # noqa: E402
from comparison_tables import across, by_method, interval, roads, single, spread, verdict  # noqa: E402

PAGE = HERE.parent / "docs" / "evidence.md"
METHODS = HERE.parent / "docs" / "methods.md"
CARDS = HERE.parent / "src" / "limbeck" / "methods" / "evidence.json"
HEAD = """# Evidence

Made by `python benchmarks/tables.py` from the files under `benchmarks/evidence` and `benchmarks/results`; do not edit.
A difference counts as one only where its 95 % interval leaves out zero; everything else is "not told apart".
"""
CROSS_MODAL = """## Does a teacher with other modalities help?

The student sees one modality. Each arm gives it the same start weights, batches, learning rate and epochs; only what it learns
from differs. Accuracy on the test split, mean ± standard deviation over seeds; differences are paired by seed (Student's t).
The intervals tell about the draw of weights, batches and what the text says of the data, not about other test sets.
Validation chose nothing but the epoch of each teacher and which KD is called the best one; students are those of the last epoch.
KD and MST-Distill run with their own defaults (T = 4; MST-Distill halves the weight of its transfer after the first epoch,
KD does not). One learning rate serves all arms and data sets, 0.005 as in the demo. On utd-mhad it was tried with a seed that is
not in the tables, together with twice the width: on validation both KDs gained on the first attempt (0.002), which had left them
far behind; the supervised student did not gain. The teachers of av-mnist got more epochs and a higher
rate after a first attempt on seed 0 had left the multimodal one at 0.70 on validation. Seconds are medians over seeds, by the clock of a busy machine.
"""
OVERHEAD = """## What the engine costs

One step of knowledge distillation against the same operations written by hand, in turn in one process; the ratio is the
median over blocks of steps, with its quartiles. Both sides have torch's fused AdamW, which the engine takes by itself; the
column behind it is the ratio to the loop as most people write it, with AdamW as torch gives it when nothing is said. Memory
is the peak of a process of its own.
"""


ACROSS = """## Which method carries most across modalities?

The methods of MST-Distill's comparison, each from a teacher that sees all modalities and from one that sees another modality
only (MST-Distill from both at once, as published); the student sees one. Everything is equal but the method, and every arm had
the same number of tuning trials on validation at the first seed. The first table sums up all targets of all data sets: ranks
are among the arms of one road (1 is best), "better" and "worse" count intervals over seeds that leave out zero.

The papers rank otherwise than these tables in places. MST-Distill's authors report it above all others on five data sets, with
larger networks and a hundred epochs. What we see at this size stands below; a small student that trains for a few epochs on a small set is another question than theirs, and a method
that is not told apart here is not shown to be useless.

Three things to know when reading. Half of the intervals are wide: five seeds, small test sets. On utd-mhad most of the depth teachers are
no better than chance, so what C2KD and MGDFR gain from them for the inertial student is not knowledge of the teacher but what their joint
training does to the student; the depth students are far from trained themselves. And on nlvr nothing lifts any student, or any teacher,
clearly above the majority.
"""
CLASSICS = """## The classics on photographs

One teacher, one student, every method with its published defaults and nothing tuned: what one gets out of the box. The published
weights were made for a hundred epochs and more on fifty thousand images, and for a teacher far above its student; here it is minutes on
a few thousand, with a teacher that is not far above, so a large weight on features or relations can cost what it would later give back.
"""
SEGMENTATION = """## Dense outputs

Every pixel is a prediction; unlabelled pixels do not count in the task's loss. Mean intersection over union on the test split.
"""


def build(evidence: Path = HERE / "evidence", results: Path = HERE / "results") -> str:
    """The page; a section whose files are missing is left out."""
    parts = [HEAD]
    found = sorted(evidence.glob("cross-modal-*.json"))
    if found:
        parts += [CROSS_MODAL, *(cross_modal(json.loads(file.read_text())) for file in found)]
    compared = [json.loads(file.read_text()) for file in sorted(evidence.glob("methods-across-modalities-*.json"))]
    if compared:
        parts += [ACROSS, roads(compared), *(across(found) for found in compared)]
    for name, head in (("classics", CLASSICS), ("segmentation", SEGMENTATION)):
        if (file := evidence / f"{name}.json").exists():
            parts += [head, single(json.loads(file.read_text()))]
    encoders = [json.loads(file.read_text()) for file in sorted(evidence.glob("encoders-*.json"))]
    if encoders:
        parts += [encoder_tables.HEAD, *map(encoder_tables.section, encoders)]
    language = [json.loads(file.read_text()) for file in sorted(evidence.glob("language-*.json"))]
    if language:
        parts += [language_tables.head(language[0]), *map(language_tables.section, language)]
    for name, head, told in (
        ("speculative", draft_tables.DRAFTS, draft_tables.drafts),
        ("across-tokenizers", draft_tables.BYTES, draft_tables.across_tokenizers),
    ):
        if (file := evidence / f"{name}.json").exists():
            parts += [head, told(json.loads(file.read_text()))]
    generators = [json.loads(file.read_text()) for file in sorted(evidence.glob("generation-*.json"))]
    generators = [found for found in generators if found.get("kind") == "generation"]
    if generators:
        parts += [generation_tables.HEAD, *generation_tables.sections(generators)]
    if (file := evidence / "generation-further.json").exists():
        parts.append(generation_tables.further(json.loads(file.read_text())))
    overheads = sorted(results.glob("overhead*.json"))
    if overheads:
        parts += [OVERHEAD, *(overhead(json.loads(file.read_text())) for file in overheads)]
    return "\n".join(parts)


def cross_modal(found: dict[str, Any]) -> str:
    """One data set: a table and its sentences per target modality."""
    seeds = [one["seed"] for one in found["seeds"]]
    versions = found["seeds"][0]["versions"]
    teachers = ", ".join(f"{name} {spread(values)}" for name, values in found["teachers"].items())
    text = [
        f"### {found['dataset']}\n",
        f"{found['notes'][0].upper()}{found['notes'][1:]} {len(seeds)} seeds.\n",
        f"Teachers: {teachers}. All trainings together: {found['seconds'] / 60:.0f} minutes by the clock, with one thread on a busy machine "
        f"(limbeck {versions['limbeck']}, torch {versions['torch']}).\n",
        *(target(name, summary, found["arms"]) for name, summary in found["summary"].items()),
        f"Again: `{found['command']}`\n",
    ]
    return "\n".join(text)


def target(name: str, summary: dict[str, Any], arms: dict[str, str]) -> str:
    """The table of one target modality, then what is and what is not better."""
    alone = {d["arm"]: d for d in summary["differences"] if d["than"] == "supervised"}
    lines = [
        f"| student sees {name}; learns from | test accuracy | minus no teacher, 95 % interval | epochs | seconds |",
        "|---|---|---|---|---|",
    ]
    for arm, told in arms.items():
        row = summary["arms"][arm]
        difference = interval(alone[arm]) if arm in alone else ""
        lines.append(f"| {told} | {spread(row)} | {difference} | {row['student_epochs']} | {row['seconds']:.0f} |")
    return "\n".join([*lines, "", verdicts(name, summary, arms), ""])


def verdicts(name: str, summary: dict[str, Any], arms: dict[str, str]) -> str:
    """Plain sentences, from whether the intervals leave out zero."""
    groups: dict[str, list[str]] = {"better than": [], "worse than": [], "not told apart from": []}
    for difference in summary["differences"]:
        if difference["than"] == "supervised":
            groups[verdict(difference)].append(arms[difference["arm"]])
    said = [f"{words.rsplit(' ', 1)[0]}: {'; '.join(names)}." for words, names in groups.items() if names]
    sentences = [
        f"Against the {name} student without a teacher, {' '.join([said[0], *(s[0].upper() + s[1:] for s in said[1:])])}"
    ]
    best = summary["best_kd_on_validation"]
    for than, called in (
        (best, f"the best KD ({arms[best].removeprefix('KD ')})"),
        ("uniform", "the uniform mixture"),
    ):
        difference = next(d for d in summary["differences"] if (d["arm"], d["than"]) == ("mst-distill", than))
        sentences.append(f"MST-Distill is {verdict(difference)} {called}: {interval(difference)}.")
    return " ".join(sentences)


def overhead(found: dict[str, Any]) -> str:
    """One machine: a row per case and a sentence."""
    cases = {name: case for name, case in found.items() if isinstance(case, dict)}
    threads = f", {found['threads']} threads" if found["device"] == "cpu" else ""
    lines = [
        f"{found['device']}: {found['machine']}{threads}, torch {found['torch']}.\n",
        "| case | by hand, ms | Limbeck, ms | ratio (quartiles) | to the default AdamW | peak by hand, MB | peak Limbeck, MB | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, case in cases.items():
        low, high = case["ratio_quartiles"]
        lines.append(
            f"| {name} | {case['ms_by_hand']:.2f} | {case['ms_limbeck']:.2f} | {case['ratio']:.3f} ({low:.3f} to {high:.3f}) "
            f"| {case['ratio_against_default_adamw']:.3f} | {case['peak_mb_by_hand']:.0f} | {case['peak_mb_limbeck']:.0f} | {case['peak_ratio']:.3f} |"
        )
    slower = [name for name, case in cases.items() if case["ratio_quartiles"][0] > 1]
    faster = [name for name, case in cases.items() if case["ratio_quartiles"][1] < 1]
    rest = [name for name in cases if name not in slower and name not in faster]
    said = [
        f"{words}: {'; '.join(names)}."
        for words, names in (
            ("Slower than by hand (both quartiles above 1)", slower),
            ("Faster (both below 1)", faster),
            ("Not told apart", rest),
        )
        if names
    ]
    return "\n".join([*lines, "", " ".join(said), ""])


GENERATORS = """
## Generators

One engine, five knobs: what the student is given, its loss, who trains, how many updates of the critic there are to one of the
student, and from what it is best begun. R is the teacher, F a critic that follows the student's samples.

| name | the student is given | its loss | who trains | critic : student | begins as; data |
|---|---|---|---|---|---|"""


def methods_page() -> str:
    """docs/methods.md: every listed method from its card."""
    from limbeck.methods import all_methods

    lines = [
        "# Methods\n",
        "Made by `python benchmarks/tables.py` from the cards of the methods; do not edit. One card with its options and its evidence:",
        "`limbeck methods NAME`. Methods that are sums of terms add up: `method=kd+rkd`.\n",
        "| name | what it does | needs of the teacher | use it when | costs | paper |",
        "|---|---|---|---|---|---|",
    ]
    for name, cls in all_methods().items():
        card = cls.card
        if card.listed:
            needs = ", ".join(card.needs) if card.teacher_mode != "none" else "no teacher"
            cells = (f"`{name}`", card.summary, needs, card.use_when, card.cost, card.paper)
            lines.append(row(cells))
    lines.append(GENERATORS)
    for name, cls in all_methods().items():
        if (play := cls.card.play) is not None:
            lines.append(row((f"`{name}`", *astuple(play))))
    return "\n".join([*lines, ""])


def row(cells: Iterable[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def cards(evidence: Path = HERE / "evidence") -> str:
    """What `limbeck methods NAME` says of evidence, as JSON."""
    files = [json.loads(file.read_text()) for file in sorted(evidence.glob("*.json"))]
    return json.dumps(by_method(files), indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 when a page is not what the files say")
    given = parser.parse_args()
    made = {PAGE: build(), METHODS: methods_page(), CARDS: cards()}
    if given.check:
        return int(any(not path.exists() or path.read_text() != text for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text)
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
