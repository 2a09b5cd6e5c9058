"""The run over the data: a teacher, asked shard by shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Teacher
from limbeck.caching import packing
from limbeck.caching.form import Shard
from limbeck.data.loader import read
from limbeck.data.tensors import Batch, Data
from limbeck.engine.validate import to_device
from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for
from limbeck.signals import Projection

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Asker:
    """Asks one teacher about one data set, as a header (`cache.json`) says.

    Batches have one size from the first row of each shard on, so that a shard's bits do not depend on who asks. Training
    rows are asked under the precision in which a training would ask them, others under the teacher's own.
    """

    def __init__(self, teacher: Teacher, data: Data, header: dict[str, Any], device: torch.device, workers: int = 0):
        self.teacher, self.header, self.device, self.workers = teacher, header, device, workers
        self.rows = _Joined(data, [part["split"] for part in header["passes"]])
        self.packings = {name: packing.read(spec) for name, spec in header["signals"].items()}

    def ask(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, dict[str, Tensor]]]:
        """Each shard with its tensors, on the CPU; reading goes on ahead over their borders.

        Raises:
            RecipeError: a row that cannot be read, or an answer that cannot be stored.
        """
        plan = [(shard, rows) for shard in shards for rows in self._batches(shard)]
        batches = read(self.rows, [rows for _, rows in plan], self.workers)
        kept: list[dict[str, Tensor]] = []
        lost: list[Tensor] = []
        for at, ((shard, _), batch) in enumerate(zip(plan, batches)):
            tensors, bad = self._answers(shard, to_device(batch, self.device))
            kept.append(tensors)
            lost.append(bad)
            if at + 1 == len(plan) or plan[at + 1][0] is not shard:
                if torch.stack(lost).any():
                    raise self._refuse(shard)
                yield shard, {name: torch.cat([each[name] for each in kept]).cpu() for name in kept[0]}
                kept, lost = [], []

    def _batches(self, shard: Shard) -> Iterator[list[int]]:
        start, size = self.rows.starts[shard.split] + shard.first, self.header["batch"]
        for low in range(0, shard.rows, size):
            yield list(range(start + low, start + min(low + size, shard.rows)))

    def _answers(self, shard: Shard, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        found = {"id": batch["id"]}
        if shard.view is not None:
            found["view_seed"] = seeds_for(batch["id"], self.header["views"]["seed"], shard.view)
            batch = batch | {"view_seed": found["view_seed"]}
        with torch.no_grad(), self._precision(shard):
            signals = self.teacher(batch, reads=self.packings.keys())
        lost = [torch.zeros((), dtype=torch.bool, device=batch["id"].device)]
        for name, how in self.packings.items():
            if isinstance(how, packing.Tokens):
                packed = how.pack(signals[name], self.teacher.own(batch))
                found |= {f"signals/{name}/{part}": tensor for part, tensor in packed.items()}
                continue
            value = signals[name].materialise() if isinstance(signals[name], Projection) else signals[name]
            if tuple(value.shape) != (len(batch["id"]), *how.shape):
                raise RecipeError(
                    f"the teacher's '{name}' has shape {list(value.shape)} for {len(batch['id'])} samples, and {list(how.shape)} for one before. "
                    "Stored are signals of one shape, a row per sample."
                )
            packed = how.pack(value)
            lost.append(packing.lost(value, packed))
            found |= {f"signals/{name}/{part}": tensor for part, tensor in packed.items()}
        return found, torch.stack(lost).any()

    def _precision(self, shard: Shard) -> AbstractContextManager[Any]:
        half = _HALF.get(self.header["precision"])
        return torch.autocast(self.device.type, dtype=half) if half and shard.split == "train" else nullcontext()

    def _refuse(self, shard: Shard) -> RecipeError:
        return RecipeError(
            f"what the teacher says of rows {shard.first} to {shard.first + shard.rows - 1} of {shard.split} holds nan, or numbers too large for "
            f"{next(h.dtype for h in self.packings.values() if not isinstance(h, packing.Tokens))}. Look at the teacher's answers, or store with cache.dtype=bf16 (or fp32)."
        )


def drawn(teacher: Teacher, data: Data, device: torch.device) -> bool:
    """Whether the teacher's view is another one for another seed: told by its transforms, and by trying."""
    views = [member.view for member in teacher.members.values() if member.view is not None]
    if not any(view.transforms for view in views):
        return False
    from limbeck.views import RandomTransform

    if any(isinstance(transform, RandomTransform) for view in views for transform in view.transforms):
        return True
    split = data.splits[next(iter(data.splits))]
    batch = to_device(split.__getitems__(list(range(min(64, len(split))))), device)
    return any(_shown(view, batch, 0) != _shown(view, batch, 1) for view in views)


def _shown(view: Any, batch: Batch, epoch: int) -> list[Any]:
    args, kwargs = view(batch | {"view_seed": seeds_for(batch["id"], 0, epoch)})
    return [value.tolist() if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]


class _Joined:
    """Several splits as one, row after row; a batch is of one of them."""

    def __init__(self, data: Data, names: Iterable[str]):
        self.starts: dict[str, int] = {}
        self.parts: list[tuple[int, Any]] = []
        end = 0
        for name in dict.fromkeys(names):
            self.starts[name] = end
            self.parts.append((end, data.splits[name]))
            end += len(data.splits[name])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        start, split = next(part for part in reversed(self.parts) if part[0] <= rows[0])
        return split.__getitems__([row - start for row in rows])
