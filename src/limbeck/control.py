"""The control of a run: found again by its fingerprint, so that it is paid for once."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from torch import nn

from limbeck import __version__
from limbeck.data.tensors import Data
from limbeck.recipe import Recipe
from limbeck.sources import fingerprint
from limbeck.tasks import Task
from limbeck.writing import link, write_json

FOLDER = "control"
_FACTS = "control.json"
_CHANGES_NOTHING = ("save_every", "log_every", "log_gradients", "workers", "micro_batch", "trainees")


def mark(untrained: nn.Module, data: Data, task: Task, recipe: Recipe) -> str:
    """16 hex digits over everything a control depends on: weights, data, task, budget, seed, view and version."""
    train = recipe.train.model_dump(mode="json")
    for free in _CHANGES_NOTHING:
        train.pop(free)
    told = [
        fingerprint(untrained),
        data.fingerprint,
        train,
        repr(task),
        recipe.seed,
        recipe.student_view(),
        __version__,
    ]
    return hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:16]


def find(run: Path, mark: str) -> Path | None:
    """A finished control with this fingerprint, in this run or in one beside it."""
    for facts in (run / FOLDER / _FACTS, *sorted(run.parent.glob(f"*/{FOLDER}/{_FACTS}"))):
        if facts.exists() and json.loads(facts.read_text()).get("fingerprint") == mark:
            return facts.parent
    return None


def take(found: Path, folder: Path) -> None:
    """A control that another run has trained, into the folder of this one."""
    if not (folder / "student" / "model.safetensors").exists():
        shutil.copytree(found, folder, dirs_exist_ok=True, copy_function=link)


def sign(folder: Path, mark: str) -> None:
    """Write beside a finished control what it is the control of."""
    write_json(folder / _FACTS, {"fingerprint": mark})
