"""Batches in an order that depends on seed and epoch alone: not on workers, processes, or where one begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from limbeck.data.tensors import Batch, Split
from limbeck.errors import RecipeError
from limbeck.randomness import fold, seeds_for

ViewSeeds = Callable[[Int64[Tensor, "batch"], int, int], Int64[Tensor, "batch"]]


class Loader:
    """Cuts a split into the batches of an epoch.

    A step takes the next `batch_size` rows of the epoch's order; of these, process `rank` of `world` gets every
    `world`-th from the `rank`-th on. A last smaller step is kept (unless `drop_last`). Where a process would get
    nothing, it gets the step's first row and `batch["ghost"] = True`, so that it can take part without counting; other
    batches have no such entry. In training (`shuffle`) a batch has `view_seed`: one int64 per row, from seed, epoch, id.

    Args:
        split: rows by position; `split.__getitems__(rows)` is a batch.
        batch_size: rows per step over all processes.
        seed: of the order and of the view seeds.
        shuffle: a new order each epoch, and view seeds; else the order of the split, and none.
        workers: processes that read ahead; 0 reads when asked. The batches are the same.
        rank, world: this process, and how many share each step.
        drop_last: leave out a last step that is smaller.
        view_seeds: gives the view seeds of ids, seed and epoch; other than the default where the views are given too.

    Raises:
        RecipeError: no row, or no step: fewer rows than a batch and `drop_last`.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = False,
        view_seeds: ViewSeeds = seeds_for,
    ) -> None:
        if batch_size < 1 or workers < 0 or not 0 <= rank < world:
            raise RecipeError(
                f"A loader needs batch_size >= 1, workers >= 0 and 0 <= rank < world; here {batch_size=}, {workers=}, "
                f"{rank=}, {world=}."
            )
        self.split, self.batch_size, self.seed, self.shuffle = split, batch_size, seed, shuffle
        self.workers, self.rank, self.world, self.view_seeds = workers, rank, world, view_seeds
        whole, rest = divmod(len(split), batch_size)
        self.steps_per_epoch: int = whole + (rest > 0 and not drop_last)
        if self.steps_per_epoch == 0:
            raise RecipeError(f"{len(split)} rows make no step of batch_size {batch_size}.")
        self._sampler = _Sampler()
        self._reader: DataLoader[Any] | None = None

    def epoch(self, n: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of epoch `n` from step `start_step` on: the same as the end of the whole epoch.

        With workers only the epoch that was asked for last can be read on.
        """
        plan = _Plan(self, self._order(n), start_step)
        for step, batch in enumerate(self._read(plan), start_step):
            if isinstance(batch, RecipeError):
                raise batch
            extra: Batch = {"view_seed": self.view_seeds(batch["id"], self.seed, n)} if self.shuffle else {}
            if self.rank >= len(plan.rows(step)):
                extra["ghost"] = True
            yield {**batch, **extra}

    def _order(self, epoch: int) -> Int[Tensor, "rows"]:
        if not self.shuffle:
            return torch.arange(len(self.split))
        seed = int(fold(fold(torch.tensor([self.seed]), epoch), 0x6F72646572))  # "order": apart from the view seeds
        return torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed))

    def _read(self, plan: _Plan) -> Iterator[Batch | RecipeError]:
        if self.workers == 0:
            return map(self.split.__getitems__, plan)
        self._sampler.plan = plan
        if self._reader is None:
            self._reader = DataLoader(
                _Reading(self.split),
                batch_sampler=self._sampler,
                num_workers=self.workers,
                persistent_workers=True,
                collate_fn=_as_it_is,
            )
        return iter(self._reader)


def read(split: Any, plan: Sequence[list[int]], workers: int = 0) -> Iterator[Batch]:
    """The batches of these lists of rows, in order; `workers` processes read ahead.

    Raises:
        RecipeError: a row that cannot be read.
    """
    if workers == 0:
        yield from map(split.__getitems__, plan)
        return
    for batch in DataLoader(_Reading(split), batch_sampler=plan, num_workers=workers, collate_fn=_as_it_is):
        if isinstance(batch, RecipeError):
            raise batch
        yield batch


@dataclass
class _Plan:
    """The rows that this process reads, a list per step."""

    loader: Loader
    order: Int[Tensor, "rows"]
    start: int

    def rows(self, step: int) -> list[int]:
        """All rows of a step, of all processes."""
        size = self.loader.batch_size
        return self.order[step * size : (step + 1) * size].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.loader.steps_per_epoch):
            rows = self.rows(step)
            yield rows[self.loader.rank :: self.loader.world] or rows[:1]


class _Sampler(Sampler[list[int]]):
    """What the worker processes are sent; another plan each epoch."""

    plan: _Plan

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.plan)


class _Reading(Dataset):
    """A split whose errors come back as values: torch would bury the sentence in a worker's traceback."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitems__(self, rows: list[int]) -> Batch | RecipeError:
        try:
            return self.split.__getitems__(rows)
        except RecipeError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch
