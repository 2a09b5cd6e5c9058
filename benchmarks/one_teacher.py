"""One teacher per seed, every method with its defaults, nothing tuned: what `classics.py` and `segmentation.py` share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import limbeck


def measure(
    name: str,
    given: argparse.Namespace,
    *,
    task: str,
    data: Callable[[int], dict[str, Any]],
    teacher: dict[str, Any],
    teacher_epochs: int,
    student: dict[str, Any],
    methods: list[Any],
    train: dict[str, Any],
    **told: Any,
) -> None:
    """Train the teachers, compare, and write `evidence/NAME.json`; the same call goes on after a stop.

    Args:
        data: the recipe's `data` for a seed, the same for all but `args.seed`.
        told: what else the file says: `dataset`, `notes`.
    """
    started, teachers = time.monotonic(), []
    keys: dict[str, Any] = {"task": task, "train": train, "control": "none"}
    for seed in given.seeds:
        own = {"data": data(seed), "student": teacher, "train": train | {"epochs": teacher_epochs}, "seed": seed}
        teachers.append(limbeck.distill(out=given.work / f"teacher-{seed}", method="supervised", **keys | own))
    drawn = "seed,data.args.seed,teacher" if "seed" in data(0)["args"] else "seed,teacher"
    found = limbeck.compare(
        limbeck.Recipe(keys | {"data": data(0), "student": student}, name=name),
        vary={
            drawn: [[*[seed] * drawn.count("seed"), str(run.folder)] for seed, run in zip(given.seeds, teachers)],
            "method": methods,
        },
        out=given.work / "comparison",
    )
    (problem,) = json.loads((found.folder / "comparison.json").read_text())["problems"]
    facts = {
        "command": f"python -m benchmarks.{name} --packs FOLDER",
        "train": train,
        "teacher_epochs": teacher_epochs,
        "seeds": given.seeds,
        "teachers": [run.result["student"]["metric"] for run in teachers],
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    shown = {key: problem[key] for key in ("metric", "split", "samples", "arms")}
    file = given.out / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(told | facts | shown, indent=1) + "\n")
    print(file)
