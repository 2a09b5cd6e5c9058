"""A student that reads bytes, taught by a teacher that reads subwords: methods across tokenizers from the same start.

    python -m benchmarks.across_tokenizers --packs FOLDER [--seeds 0 1 2] [--work FOLDER]

Texts and teacher (byte-level BPE of 2,048 tokens, 10 M parameters) are those of benchmarks/language.py, and in the same work
folder the teacher is not trained again. The student's tokenizer has the 256 bytes and an end. Every student of a seed goes on
from the same student, which has read the texts for a while; "supervised" reads on without a teacher. Methods run with their
published defaults, beside the labels where those say so. Measured in bits per byte of the test texts, which do not depend on
tokens, on ten held-out documents. The figures go to benchmarks/evidence/across-tokenizers.json; `python benchmarks/tables.py` makes the page.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from benchmarks.command_line import words
from benchmarks.language import STUDENT, TEACHER, TRAIN, new, prepare, teach, tokenizer
from benchmarks.speculative import method_of, shortened, summary

import limbeck

NAME = "tinyshakespeare"
LENGTH = 256
START = 200
STEPS = 60
ARMS: dict[str, Any] = {
    "supervised": "supervised",
    "uld": "uld",
    "alm": "alm",
    "alm + labels": {"use": "alm", "task_weight": 1.0},
}


def main() -> None:
    """Everything, or what is left of it."""
    given = words(__doc__, "limbeck-language")
    work = given.work / NAME
    files, tokens = prepare(NAME, given.packs, work)
    teacher = teach(NAME, files, tokens, work)
    letters = tokenizer([], size=257)
    data = {"path": shortened(files, work), "length": LENGTH}
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    starts = []
    for seed in given.seeds:
        begun = limbeck.distill(
            task="text",
            data=data,
            student=new(work / f"bytes-start-{seed}", letters, STUDENT, seed),
            method="supervised",
            train=TRAIN | {"lr": 2e-3, "steps": START},
            control="none",
            seed=seed,
            out=work / f"bytes-{seed}",
        )
        starts.append(begun.result["student"]["metric"])
        for number, (arm, method) in enumerate(ARMS.items()):
            run = limbeck.distill(
                task="text",
                data=data,
                student=str(begun.folder / "student"),
                teacher=str(teacher.folder / "student"),
                method=method,
                train=TRAIN | {"steps": STEPS},
                control="none",
                seed=seed,
                out=work / "across-tokenizers" / f"{number}-{seed}",
            )
            results[arm].append(run.result)
            print(arm, seed, run.result["student"]["metric"], run.result["cost"]["seconds"], flush=True)
    values = {arm: [run["student"]["metric"] for run in runs] for arm, runs in results.items()}
    methods = {arm: method_of(choice) for arm, choice in ARMS.items()}
    told = {
        "dataset": NAME,
        "notes": (
            f"Rows of {LENGTH} bytes for the student ({STUDENT['num_hidden_layers']} layers, width {STUDENT['hidden_size']}); the teacher "
            f"({TEACHER['num_hidden_layers']} layers, width {TEACHER['hidden_size']}) reads the same texts in {len(tokens):,} subwords"
        ),
        "command": "python -m benchmarks.across_tokenizers --packs FOLDER",
        "train": TRAIN | {"steps": STEPS},
        "start": {"steps": START, "bits_per_byte": statistics.fmean(starts)},
        "seeds": given.seeds,
        "teacher": teacher.result["student"]["metric"],
        "seconds": {
            arm: statistics.fmean(sum(stage["seconds"] for stage in run["stages"]) for run in runs)
            for arm, runs in results.items()
        },
        "targets_are": "a student of bytes,",
        "targets": {
            "bits per byte": {
                "metric": "bits_per_byte",
                "higher_is_better": False,
                "arms": summary(values, ("supervised",), methods, more_is_better=False),
            }
        },
    }
    file = given.out / "across-tokenizers.json"
    file.write_text(json.dumps(told, indent=1) + "\n")
    print(file, flush=True)


if __name__ == "__main__":
    main()
