"""What a plan is made for: this machine, or devices that are named by their memory or their model."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from limbeck.errors import RecipeError, nearest

# Nominal memory of one device in GB of 1e9 bytes. Models that come in two sizes are named with the size.
KNOWN = {
    **{"t4": 16, "v100-16gb": 16, "v100-32gb": 32, "p100": 16},
    **{"a10": 24, "a10g": 24, "a30": 24, "l4": 24, "rtx3090": 24, "rtx4090": 24, "rtx5090": 32},
    **{"a6000": 48, "a40": 48, "l40": 48, "l40s": 48, "a100-40gb": 40, "a100-80gb": 80},
    **{"h100": 80, "h200": 141, "b200": 180, "mi300x": 192},
}
RESERVE = 0.75e9  # of a CUDA device: its context, the libraries' kernels and work spaces; assumed, and said


@dataclass(frozen=True)
class Device:
    """One kind of device and how many of them; `here`: the one that the plan was measured on."""

    name: str
    bytes: float
    count: int = 1
    here: bool = False
    cuda: bool = True


def parse(on: str | None) -> Device:
    """`24GB`, `40GiB`, `h100`, `4x24GB`, `8xh100`; None: this machine.

    Raises:
        RecipeError: neither an amount of memory nor a device that is known.
    """
    if on is None:
        return this_machine()
    text = on.strip().lower().replace(" ", "")
    many = re.fullmatch(r"(\d+)x(.+)", text)
    count, what = (int(many[1]), many[2]) if many else (1, text)
    amount = re.fullmatch(r"(\d+(?:\.\d+)?)(gb|gib|g)", what)
    if count < 1 or not (amount or what in KNOWN):
        raise RecipeError(
            f"on='{on}' is neither an amount of memory (24GB, 4x24GB) nor a known device. {nearest(what, KNOWN)}"
        )
    size = float(amount[1]) * (2**30 if amount[2] == "gib" else 1e9) if amount else KNOWN[what] * 1e9
    if size <= 0:
        raise RecipeError(f"on='{on}': a device without memory cannot train anything.")
    return Device(on.strip(), size, count)


def this_machine() -> Device:
    """The CUDA device here, or the memory that this process may have."""
    if torch.cuda.is_available():
        return Device(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory, here=True)
    import psutil

    size = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may have less than its machine
    if limit.exists() and (told := limit.read_text().strip()).isdigit():
        size = min(size, int(told))
    return Device("this machine (CPU)", size, here=True, cuda=False)


def free(device: torch.device) -> float:
    """Bytes that this process could still take on `device`."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    import psutil

    here = this_machine().bytes - psutil.Process().memory_info().rss
    return float(min(psutil.virtual_memory().available, max(here, 0.0)))


def resident() -> int:
    """Bytes of this process in memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes this process had in memory (since `forget_peak`, where the system can forget)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def forget_peak() -> None:
    """Measure the peak from here on; on systems that cannot, it stays that of the whole process."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
