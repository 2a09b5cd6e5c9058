"""The processes that train together: sums over them, and gathers of unequal pieces."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """This process among its peers. One process is a world of its own, and then every call here costs nothing."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def here(cls, device: str | None = None) -> World:
        """The world that `torchrun` or `accelerate launch` set up, joined if need be; otherwise this process alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 or (dist.is_available() and dist.is_initialized()):
            from accelerate import PartialState

            state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
            launched = int(os.environ.get("WORLD_SIZE", state.num_processes))
            if state.num_processes != launched:  # each would train on its own, and all write to one folder
                raise RuntimeError(f"{launched} processes were launched, and this one finds {state.num_processes}.")
            return cls(state.process_index, state.num_processes, state.device)
        chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(0, 1, torch.device(chosen))

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.size == 1:
            return number
        highest = torch.tensor(number, device=self.device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return int(highest)

    def same(self, tensor: Tensor) -> Tensor:
        """The main process's tensor, on every process, in place."""
        if self.size > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather_rows(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all processes, in order of rank, and where this process's own begin. Counts may differ."""
        if self.size == 1:
            return rows, 0
        counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
        lengths = [int(c) for c in counts]
        most = max(lengths)
        padded = rows.detach().new_zeros((most, *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        carried = padded.to(torch.uint8) if rows.dtype == torch.bool else padded
        parts = [torch.empty_like(carried) for _ in range(self.size)]
        dist.all_gather(parts, carried.contiguous())
        joined = torch.cat([part[:n] for part, n in zip(parts, lengths)])
        return joined.to(rows.dtype), sum(lengths[: self.rank])

    def agree(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        if self.size == 1:
            return flag
        return bool(self.sum_(torch.tensor(float(flag), device=self.device)) > 0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()
