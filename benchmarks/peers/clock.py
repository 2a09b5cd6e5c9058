"""One side's training steps under the clock: shared by both sides, needs nothing but Python."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FIRST = 10  # steps whose losses are reported; they are the warm-up too


def memory(line: str) -> float:
    """MB, from this process's own account. VmHWM: the highest resident set so far; VmRSS: the present one."""
    status = Path("/proc/self/status").read_text()
    return float(status.split(f"{line}:")[1].split()[0]) / 1e3


def measure(losses: Iterator[float], steps: int) -> dict[str, Any]:
    """Draw FIRST + `steps` losses, one per training step; a step's time is from one loss to the next, in ms.

    `cpu_ms` is processor time of this process: on a shared machine it moves less than the time on the wall.
    """
    before = memory("VmRSS")
    first = [next(losses) for _ in range(FIRST)]
    wall: list[float] = []
    cpu: list[float] = []
    for _ in range(steps):
        clock, used = time.perf_counter(), time.process_time()
        next(losses)
        wall.append((time.perf_counter() - clock) * 1e3)
        cpu.append((time.process_time() - used) * 1e3)
    return {
        "steps": steps,
        "ms": statistics.median(wall),
        "cpu_ms": statistics.median(cpu),
        "losses": first,
        "peak_mb": memory("VmHWM"),
        "before_steps_mb": before,
    }
