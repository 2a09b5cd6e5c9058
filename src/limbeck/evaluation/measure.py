"""One network measured on one split: its logits, every figure that was asked for, its size and its latency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from limbeck import labels
from limbeck.actors import Actor, Student, Teacher
from limbeck.engine.processes import World
from limbeck.engine.validate import Batches, outputs_of
from limbeck.errors import RecipeError
from limbeck.evaluation import calibration, fidelity, memory, quality, speed
from limbeck.evaluation.checks import Check, chosen
from limbeck.evaluation.judged import Watched, further_rounds, judges_of
from limbeck.evaluation.missing import missing
from limbeck.evaluation.speculative import fits, speculative
from limbeck.evaluation.writing import Written, writing
from limbeck.tasks import LANGUAGE, Task
from limbeck.teachers.mixture import Mixture
from limbeck.views import View


@dataclass
class Measured:
    """What was measured: outputs (see `Task.outputs`), targets and row numbers in order, and the entry for `result.json`."""

    outputs: Tensor
    target: Tensor
    id: Tensor
    written: Written | None = None
    entry: dict[str, Any] = field(default_factory=dict)


def measure(
    actor: Actor,
    once: Batches,
    task: Task,
    *,
    checks: Iterable[str | Mapping[str, Any] | Check] = ("quality",),
    world: World | None = None,
    against: Measured | None = None,
    judge: Actor | None = None,
    time_it: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Measured:
    """Run `actor` over a split and collect its figures.

    Args:
        once: goes over the split once.
        checks: names of `checks.CHECKS`, or `{use: NAME, option: value}`; quality, calibration and (with `against`) fidelity cost
            next to nothing.
        against: the teacher's answers on the same rows.
        judge: the teacher, who says how likely it is what the check `writing` let the actor write, and for whom the actor
            drafts in the check `speculative`.
        time_it: measure the latency of one sample too.
        options: of any of these checks that has one of this name.

    Raises:
        RecipeError: an unknown check or option.
    """
    asked = chosen(checks, options)
    world = world or World()
    refuse_privileged(actor)
    watched = Watched(task, judges_of(asked, world.device) if task.name == "generation" and not actor.stored else ())
    seen = outputs_of(actor, once, world, watched if watched.judges else task)  # type: ignore[arg-type]
    measured = Measured(in_order(actor, seen["outputs"], task), seen["target"], seen["id"])
    figures = quality.figures(task.name, measured.outputs, measured.target)
    if task.name == "classification":
        figures |= calibration.figures(measured.outputs, measured.target)
        if against is not None and against.outputs.shape == measured.outputs.shape:
            figures |= fidelity.figures(measured.outputs, against.outputs)
    if "missing" in asked and not actor.stored:
        figures |= missing(actor, _view(actor), once, task, world)
    if "writing" in asked and task.name in LANGUAGE and not actor.stored:
        measured.written = writing(actor, once, task, judge=None if judge is None or judge.stored else judge)
        figures |= measured.written.figures
    if "speculative" in asked and task.name in LANGUAGE and judge is not None and fits(actor, judge):
        figures |= speculative(actor, judge, once, world=world)
    how: Any = getattr(actor.model, "sampling", None)
    if task.name == "generation" and how is not None:
        figures["evaluations"] = how.evaluations
    metric = quality.primary(task.metric, task.name)
    measured.entry = {
        "name": _name(actor),
        "view": _view(actor),
        "metric": metric(measured.outputs, measured.target),
        "parameters": actor.parameters_count(),
        "bytes": actor.bytes_count(),
        "latency_ms": None,
        "figures": figures,
    }
    further_rounds(actor, once, watched, world)
    for sees in watched.judges:
        found, facts = sees.figures(world)
        figures |= found
        measured.entry["judged"] = measured.entry.get("judged", {}) | facts
    if isinstance(actor, Mixture) and actor.generates:
        measured.entry["samples_of"] = actor.describe_samples(next(once()))
    if time_it and not actor.stored and not actor.far:
        measured.entry["latency_ms"] = latency(actor, once)
        if "speed" in asked:
            measured.entry["speed"] = cost(actor, once, **asked["speed"].options())
    return measured


def in_order(actor: Actor, logits: Tensor, task: Task) -> Tensor:
    """A teacher's logits in the order of the task's classes, where both are known by name; a class it lacks is never chosen."""
    names = actor.labels or ()
    if not isinstance(actor, Teacher) or not task.labels or logits.dim() < 2 or len(names) != logits.shape[1]:
        return logits
    renamed = {} if isinstance(actor.label_map, str) else actor.label_map
    if len({renamed.get(name, name) for name in names} & {*task.labels}) < 2:
        return logits  # classes of its own: its logits are not compared with the targets by anybody
    found = labels.match(task.labels, names, actor.label_map)
    if found is None:
        return logits
    ordered = logits.new_full((len(logits), len(task.labels)), -torch.inf)
    ordered[:, list(found.student)] = found.of_teacher(logits, 1)
    return ordered


def cost(actor: Actor, once: Batches, *, batch_size: int = 32, repeats: int = 20) -> dict[str, float | int]:
    """Milliseconds (median, 95 %) at a batch of one and of `batch_size`, samples per second, and peak memory.

    `peak_bytes_1` and `peak_bytes`: what one forward pass needs beside the weights (see `memory.peak_bytes`); left out
    where the network is a file under a runtime of its own.
    """
    batch = next(once())
    rows = next(len(value) for value in batch.values() if isinstance(value, (Tensor, list)))
    one, many = (_rows(batch, [i % rows for i in range(size)]) for size in (1, batch_size))
    first, later = (speed.latency(lambda b=b: actor(b), repeats=repeats, warmup=3) for b in (one, many))
    found: dict[str, float | int] = {
        "median_ms": first.median,
        "p95_ms": first.p95,
        "batch_size": batch_size,
        "batch_median_ms": later.median,
        "batch_p95_ms": later.p95,
        "samples_per_second": batch_size / later.median * 1000,
    }
    if next(iter(actor.model.parameters()), None) is not None:
        found |= {
            "peak_bytes_1": memory.peak_bytes(lambda: actor(one)),
            "peak_bytes": memory.peak_bytes(lambda: actor(many)),
        }
    return found


def _rows(batch: Mapping[str, Any], indices: list[int]) -> dict[str, Any]:
    """These rows of a batch."""
    return {
        key: value[indices]
        if isinstance(value, Tensor)
        else [value[i] for i in indices]
        if isinstance(value, list)
        else value
        for key, value in batch.items()
    }


def latency(actor: Actor, once: Batches) -> float:
    """Median milliseconds for one sample at a time; of a generator that is called often for one, over fewer samples."""
    batch = next(once())
    one = _rows(batch, [0])
    how: Any = getattr(actor.model, "sampling", None)
    often = how is not None and how.evaluations > 4
    with torch.no_grad():
        return speed.latency(lambda: actor(one), repeats=5 if often else 20, warmup=1 if often else 3).median


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


def _name(actor: Actor) -> str:
    if isinstance(actor, Mixture):
        return " + ".join(type(m.model).__name__ for m in actor.members.values())
    return vars(actor.model).get("called", type(actor.model).__name__)


def _view(actor: Actor) -> list[str]:
    members = actor.members.values() if isinstance(actor, Teacher) else [actor]
    views: list[View | None] = [m.view for m in members]
    return list(dict.fromkeys(column for view in views if view for column in [*view.keys, *view.named.values()]))
