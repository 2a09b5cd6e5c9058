"""One network measured on one split: its logits, every figure that was asked for, its size and its latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Actor, Student, Teacher
from limbeck.engine.processes import World
from limbeck.engine.validate import Batches, logits_of
from limbeck.errors import RecipeError, nearest
from limbeck.evaluation import calibration, fidelity, quality, speed
from limbeck.tasks import Task
from limbeck.teachers.mixture import Mixture
from limbeck.views import View

CHECKS = ("quality", "fidelity", "calibration", "speed", "missing")
LATER = ("robustness", "search", "fid", "judge", "clip-score")


@dataclass
class Measured:
    """What was measured: logits, targets and row numbers in order, and the entry for `result.json`."""

    logits: Tensor
    target: Tensor
    id: Tensor
    entry: dict[str, Any] = field(default_factory=dict)


def measure(
    actor: Actor,
    once: Batches,
    task: Task,
    *,
    checks: Sequence[str] = ("quality",),
    world: World | None = None,
    against: Measured | None = None,
    time_it: bool = True,
) -> Measured:
    """Run `actor` over a split and collect its figures.

    Args:
        once: goes over the split once.
        checks: names from `CHECKS`; quality, calibration and (with `against`) fidelity cost next to nothing.
        against: the teacher's answers on the same rows.
        time_it: measure the latency of one sample too.

    Raises:
        RecipeError: an unknown check.
    """
    for check in checks:
        if check in LATER:
            raise RecipeError(f"the check '{check}' is not there yet. There is: {', '.join(CHECKS)}.")
        if check not in CHECKS:
            raise RecipeError(f"unknown check '{check}'. {nearest(check, CHECKS)}")
    world = world or World()
    refuse_privileged(actor)
    seen = logits_of(actor, once, world, task.target)
    measured = Measured(seen["logits"], seen["target"], seen["id"])
    figures = quality.figures(task.name, measured.logits, measured.target)
    if task.name == "classification":
        figures |= calibration.figures(measured.logits, measured.target)
        if against is not None and against.logits.shape == measured.logits.shape:
            figures |= fidelity.figures(measured.logits, against.logits)
    if "missing" in checks:
        figures |= missing(actor, once, task, world)
    metric = quality.primary(task.metric, task.name)
    measured.entry = {
        "name": _name(actor),
        "view": _view(actor),
        "metric": metric(measured.logits, measured.target),
        "parameters": actor.parameters_count(),
        "bytes": sum(speed.size_bytes(model) for model in _models(actor)),
        "latency_ms": None,
        "figures": figures,
    }
    if time_it:
        measured.entry["latency_ms"] = latency(actor, once)
    return measured


def latency(actor: Actor, once: Batches) -> float:
    """Median milliseconds for one sample at a time."""
    batch = next(once())
    one = {key: value[:1] if isinstance(value, (Tensor, list)) else value for key, value in batch.items()}
    with torch.no_grad():
        return speed.latency(lambda: actor(one), repeats=20, warmup=3).median


def missing(actor: Actor, once: Batches, task: Task, world: World) -> dict[str, float]:
    """The metric with each column of the view zeroed in turn, as `without_<column>`; nothing for a single column."""
    columns = _view(actor)
    if len(columns) < 2:
        return {}
    metric = quality.primary(task.metric, task.name)
    found = {}
    for column in columns:

        def without(column: str = column) -> Any:
            for batch in once():
                yield batch | {column: torch.zeros_like(batch[column])}

        seen = logits_of(actor, without, world, task.target)
        found[f"without_{column}"] = metric(seen["logits"], seen["target"])
    return found


def refuse_privileged(actor: Actor) -> None:
    """A student that is shown what it will not have at inference cannot be evaluated.

    Raises:
        RecipeError: the student's view is marked privileged.
    """
    if isinstance(actor, Student) and actor.view is not None and actor.view.privileged:
        raise RecipeError(
            "the student's view is privileged: it shows what is not there at inference, so figures measured with it would mean nothing. "
            "Privileged views are for teachers."
        )


def _models(actor: Actor) -> list[torch.nn.Module]:
    members = actor.members.values() if isinstance(actor, Teacher) else [actor]
    return list({id(m.model): m.model for m in members}.values())


def _name(actor: Actor) -> str:
    if isinstance(actor, Mixture):
        return " + ".join(type(m.model).__name__ for m in actor.members.values())
    return type(actor.model).__name__


def _view(actor: Actor) -> list[str]:
    members = actor.members.values() if isinstance(actor, Teacher) else [actor]
    views: list[View | None] = [m.view for m in members]
    return list(dict.fromkeys(column for view in views if view for column in [*view.keys, *view.named.values()]))
