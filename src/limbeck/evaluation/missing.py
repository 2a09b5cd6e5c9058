"""What is left of a model when one of its modalities is not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Actor, Teacher
from limbeck.engine.processes import World
from limbeck.engine.validate import Batches, outputs_of
from limbeck.evaluation import quality
from limbeck.tasks import Task
from limbeck.views import View


def missing(actor: Actor, columns: Sequence[str], once: Batches, task: Task, world: World) -> dict[str, float]:
    """The metric with each column of the view missing in turn, as `without_<column>`; nothing for a single column.

    A column that the network takes by keyword, and may do without (its parameter is None by default), is not given;
    any other one is zero (an empty text) for all samples.
    """
    if len(columns) < 2:
        return {}
    metric = quality.primary(task.metric, task.name)
    found = {}
    for column in columns:
        dropped = _without(actor, column)
        view = actor.view

        def rows(column: str = column) -> Iterator[dict[str, Any]]:
            for batch in once():
                yield batch | {column: _nothing(batch[column])} if column in batch else batch

        try:
            if dropped is not None:
                actor.view = dropped
            seen = outputs_of(actor, rows, world, task)
        finally:
            actor.view = view
        found[f"without_{column}"] = metric(seen["outputs"], seen["target"])
    return found


def _without(actor: Actor, column: str) -> View | None:
    """The actor's view without a column; None where the network needs it, or a transform names it."""
    view = actor.view
    if (
        view is None
        or view.transforms
        or column in view.keys
        or (isinstance(actor, Teacher) and len(actor.members) > 1)
    ):
        return None
    parameters = inspect.signature(actor.model.forward).parameters
    names = [name for name, shown in view.named.items() if shown == column]
    if not names or any(name not in parameters or parameters[name].default is not None for name in names):
        return None
    return View(*view.keys, **{name: shown for name, shown in view.named.items() if shown != column})  # type: ignore[arg-type]


def _nothing(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) else ["" for _ in value]
