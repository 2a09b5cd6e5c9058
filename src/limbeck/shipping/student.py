"""The folder of a student that ships: weights, how to build it, its labels, its card."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.actors import Student
from limbeck.data.tensors import Data
from limbeck.engine import weights
from limbeck.models import adapters
from limbeck.models.adapters.pipeline_folder import PIPELINE
from limbeck.shipping import card as cards
from limbeck.sources import STUDENT_FILE, WEIGHTS_FILE, load_weights, save_weights
from limbeck.tasks import Task


def write(folder: Path, student: Student, task: Task, data: Data, spec: dict[str, Any] | None) -> None:
    """Write `folder` anew: filled aside and renamed, so that a half-written student never stands there.

    Holds the student's own parameters and buffers only: no teacher, no optimiser, and no bridge but one that was built
    into the student because it ships. Low-rank adapters are merged into the weights, for good.
    """
    student.merge()
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if any(hasattr(p, "device_mesh") for p in student.model.parameters()):
        from safetensors.torch import save_file

        save_file(weights.take(student.model), aside / WEIGHTS_FILE)
    else:
        save_weights(student.model, aside / WEIGHTS_FILE)
    spec = student.source.origin or spec  # not the folder that it came from, which may be gone
    facts = {
        "limbeck": __version__,
        "class": type(student.model).__name__,
        "model": (spec or {}).get("model"),
        "args": (spec or {}).get("args", {}),
        "surgery": student.source.surgery,
        "view": student.view.spec() if student.view else None,
        "taps": student.paths,
        "labels": task.labels,
        "columns": data.columns,
    }
    (aside / STUDENT_FILE).write_text(json.dumps(facts, indent=1) + "\n")
    adapters.keep(student.model, aside, student.source.weights)
    if task.labels:
        (aside / "labels.json").write_text(json.dumps(task.labels) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(aside, folder)


def read_into(student: Student, folder: Path) -> None:
    """Load the weights of a student folder into a student of the same architecture (whose adapters go: those are merged)."""
    student.merge()
    load_weights(student.model, folder / WEIGHTS_FILE, "student")


def card(folder: Path, result: dict[str, Any]) -> None:
    """A README beside the weights: what it is, how good, against what, and how to load it."""
    cards.write(folder, result, told=_of_pipeline(folder / PIPELINE))


def _of_pipeline(folder: Path) -> list[str]:
    """That there is a pipeline which others open, and what it lacks, as its own README has it."""
    file = folder / "README.md"
    if not file.exists():
        return []
    what = (
        "a pipeline that diffusers opens"
        if (folder / "model_index.json").exists()
        else "a network that diffusers opens"
    )
    lacks = file.read_text().partition("```")[0].split("\n\n")[1:]
    return [f"`{folder.name}/` is {what} without Limbeck; its README.md says how it is called.", *filter(None, lacks)]
