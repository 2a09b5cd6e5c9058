"""One pass over a split without learning: the loss that selects, the task's metric, or all logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Actor
from limbeck.data.collate import pick
from limbeck.data.loader import Loader
from limbeck.engine.processes import World
from limbeck.objectives import BatchPart, Loss, at_least_one
from limbeck.tasks import Task

_SKETCHES = 16
"""Rows of sketches at a time: each token takes as much as the one of which most classes are known."""
Batches = Callable[[], Iterator[dict[str, Any]]]


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on `device`."""
    if device.type == "cpu":
        return dict(batch)
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def batches(split: Any, size: int, world: World, workers: int = 0) -> Batches:
    """A function that goes over the split once, in order, without training-time randomness."""
    loader = Loader(split, size, seed=0, shuffle=False, workers=workers, rank=world.rank, world=world.size)

    def once() -> Iterator[dict[str, Any]]:
        for batch in loader.epoch(0):
            batch.pop("view_seed", None)
            yield to_device(batch, world.device)

    return once


@torch.no_grad()
def mean_loss(function: Callable[[dict[str, Any]], Loss], once: Batches, world: World) -> float:
    """The weighted sum of the parts, each averaged over the whole split; batch-scope parts over batches."""
    sums: dict[str, Tensor] = {}
    weights: dict[str, float] = {}
    for batch in once():
        loss, real = function(batch), 0.0 if batch.get("ghost") else 1.0
        for name, part in loss.parts.items():
            if isinstance(part, BatchPart):
                pair = torch.stack(
                    [part.value(part.tensors).double(), torch.ones((), dtype=torch.float64, device=world.device)]
                )
            else:
                pair = torch.stack(
                    [part.sum.double(), torch.as_tensor(part.count, dtype=torch.float64, device=world.device)]
                )
            sums[name] = sums.get(name, torch.zeros(2, dtype=torch.float64, device=world.device)) + pair * real
            weights[name] = float(part.weight)
    if not sums:
        return float("nan")
    joined = world.sum_(torch.stack(list(sums.values())))
    means = joined[:, 0] / at_least_one(joined[:, 1])
    return float(sum(weights[name] * float(mean) for name, mean in zip(sums, means)))


def few_at_once(actor: Actor, once: Batches) -> Iterator[dict[str, Any]]:
    """The batches; of an actor that answers in sketches so few rows that these do not fill the memory."""
    for batch in once():
        rows = torch.arange(len(batch["id"]))
        pieces = rows.split(_SKETCHES) if getattr(actor, "sketches", False) else [rows]
        yield from (pick(batch, piece) for piece in pieces) if len(pieces) > 1 else [batch]


@torch.no_grad()
def outputs_of(actor: Actor, once: Batches, world: World, task: Task) -> dict[str, Tensor]:
    """`outputs` and `target` (see `Task.outputs`) and `id` of every sample, in order of id, on the CPU of every process."""
    kept: dict[str, list[Tensor]] = {}
    for batch in few_at_once(actor, once):
        outputs, target = task.outputs(actor(batch), actor.own(batch))
        rows = {"outputs": outputs, "target": target, "id": batch["id"]}
        for name, value in rows.items():
            kept.setdefault(name, []).append(value[:0] if batch.get("ghost") else value)
    joined = {name: world.gather_rows(torch.cat(values))[0].cpu() for name, values in kept.items()}
    order = joined["id"].argsort()
    return {name: value[order] for name, value in joined.items()}
