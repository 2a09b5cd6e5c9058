"""Drafts for speculative decoding: one start per seed, taught in several ways, measured as what they are for.

    python -m benchmarks.speculative --packs FOLDER [--seeds 0 1 2] [--work FOLDER]

Texts, tokenizer, target (the teacher, 10 M parameters) and starts (students of 0.9 M that have read the texts for 300 steps) are
those of benchmarks/language.py, and in the same work folder they are not trained again. Every draft goes on for as many steps;
adaspec trains its reference for as many before. Measured on the test texts by the check `speculative`: acceptance exactly, at
temperature 1 and greedily; proposals accepted, tokens per call of the target and the speed-up by the clock while both write. Held-out are ten documents of 4,000 characters.
The figures go to benchmarks/evidence/speculative.json; `python benchmarks/tables.py` makes the page.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import words
from benchmarks.language import LENGTH, SETS, STUDENT, TEACHER, TRAIN, begin, prepare, teach

import limbeck
from limbeck.evaluation import speculative
from limbeck.evaluation.intervals import paired_t

NAME = "tinyshakespeare"
STEPS = 60
OWN_TEXTS = {"use": "distillspec", "max_new_tokens": 64}
ARMS: dict[str, Any] = {
    "supervised": "supervised",
    "forward-kl": "forward-kl",
    "distillspec (forward-kl, own texts)": OWN_TEXTS | {"divergence": "forward-kl"},
    "distillspec (tvd, own texts)": OWN_TEXTS | {"divergence": "tvd"},
    "adaspec": "adaspec",
}
FIGURES = (
    *("acceptance", "accepted", "block_efficiency", "speedup"),
    *("greedy_acceptance", "greedy_accepted", "greedy_block_efficiency", "greedy_speedup"),
)


def summary(
    found: Mapping[str, Sequence[float]],
    bases: Sequence[str],
    methods: Mapping[str, str],
    *,
    more_is_better: bool = True,
) -> list[dict[str, Any]]:
    """One entry per arm: values by seed, mean, spread, and differences to the bases, paired by seed (Student's t)."""
    arms = []
    for arm, values in found.items():
        differences = {}
        for base in bases:
            if base != arm and base in found:
                pairs = [a - b for a, b in zip(values, found[base], strict=True)]
                differences[base] = {"seeds": paired_t(pairs).to_dict(f"{arm} - {base}")}
        spread = statistics.stdev(values) if len(values) > 1 else None
        arms.append(
            {
                "arm": arm,
                "method": methods[arm],
                "mean": statistics.fmean(values),
                "sd": spread,
                "values": list(values),
                "finished": len(values),
                "differences": differences,
            }
        )
    return sorted(arms, key=lambda arm: -arm["mean"] if more_is_better else arm["mean"])


def shortened(files: Mapping[str, str], work: Path) -> dict[str, str]:
    """The same training texts; the first ten test documents and five of the validation split, for drafts are measured often."""
    short = dict(files)
    for split, count in (("validation", 5), ("test", 10)):
        lines = Path(files[split]).read_text().splitlines(keepends=True)
        short[split] = str(work / f"short-{split}.jsonl")
        Path(short[split]).write_text("".join(lines[:count]))
    return short


def method_of(choice: Any) -> str:
    """The method's name in an arm."""
    return choice if isinstance(choice, str) else str(choice["use"])


def main() -> None:
    """Everything, or what is left of it."""
    given = words(__doc__, "limbeck-language")
    work = given.work / NAME
    files, tokens = prepare(NAME, given.packs, work)
    teacher = teach(NAME, files, tokens, work)
    short = shortened(files, work)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in given.seeds:
        start = begin(NAME, seed, files, tokens, work)
        for number, (arm, method) in enumerate(ARMS.items()):
            run = limbeck.distill(
                task="text",
                data={"path": short, "length": LENGTH},
                student=start,
                teacher=str(teacher.folder / "student"),
                method=method,
                train=TRAIN | {"steps": STEPS},
                control="none",
                evaluate=["quality", "speculative"],
                seed=seed,
                out=work / "drafts" / f"{number}-{seed}",
            )
            results[arm].append(run.result)
            told = {key: round(run.result["student"]["figures"][key], 3) for key in FIGURES}
            print(arm, seed, told, run.result["cost"]["seconds"], flush=True)
    methods = {arm: method_of(choice) for arm, choice in ARMS.items()}
    targets = {}
    for figure in FIGURES:
        values = {arm: [run["student"]["figures"][figure] for run in runs] for arm, runs in results.items()}
        targets[figure.replace("_", " ")] = {
            "metric": figure,
            "higher_is_better": True,
            "arms": summary(values, ("supervised", "forward-kl"), methods),
        }
    told = {
        "dataset": NAME,
        "notes": (
            f"Rows of {LENGTH} tokens; the target is a Llama of {TEACHER['num_hidden_layers']} layers and width "
            f"{TEACHER['hidden_size']} (10 M parameters), the drafts have {STUDENT['num_hidden_layers']} layers and width "
            f"{STUDENT['hidden_size']} (0.9 M)"
        ),
        "command": "python -m benchmarks.speculative --packs FOLDER",
        "train": TRAIN | {"steps": STEPS},
        "start": SETS[NAME]["start"],
        "seeds": given.seeds,
        "decoding": {"gamma": speculative.GAMMA, "prompts": speculative.PROMPTS, "tokens": speculative.NEW},
        "teacher": teacher.result["student"]["metric"],
        "bits_per_byte": {
            arm: statistics.fmean(run["student"]["metric"] for run in runs) for arm, runs in results.items()
        },
        "seconds": {
            arm: statistics.fmean(sum(stage["seconds"] for stage in run["stages"]) for run in runs)
            for arm, runs in results.items()
        },
        "targets_are": "a draft's",
        "targets": targets,
    }
    file = given.out / "speculative.json"
    file.write_text(json.dumps(told, indent=1) + "\n")
    print(file, flush=True)


if __name__ == "__main__":
    main()
