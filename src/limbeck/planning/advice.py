"""What to change where a plan does not fit: each sentence names a key and says what it would come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from limbeck.planning import prediction
from limbeck.planning.devices import RESERVE, Device
from limbeck.planning.rehearsal import Rehearsal
from limbeck.planning.seen import Seen


@dataclass(frozen=True)
class Limit:
    """One thing that may be spent: how much is predicted, how much there is, and whose word that is."""

    what: str
    predicted: float | None
    limit: float
    source: str

    @property
    def held(self) -> bool:
        """Whether the prediction keeps to the limit; what is not known breaks none."""
        return self.predicted is None or self.predicted <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "what": self.what,
            "predicted": self.predicted,
            "limit": self.limit,
            "from": self.source,
            "held": self.held,
        }


def gigabytes(size: float) -> str:
    """`1.25 GB`, `340 MB`, `7 kB`: units of 1000."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    """`3.2 s`, `4.1 min`, `2.6 h`."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def advice(
    rehearsal: Rehearsal,
    device: Device,
    limits: list[Limit],
    *,
    memory: dict[str, Any],
    spent: dict[str, Any],
    shares: dict[str, float],
    disk: dict[str, float],
) -> list[str]:
    """What to change, for each limit that is not kept; the changes that leave the result as it is come first."""
    broken = {limit.what: limit for limit in limits if not limit.held}
    found: list[str] = []
    if "memory_gb" in broken:
        found += _for_memory(rehearsal, device, broken["memory_gb"], memory)
    if {"hours", "usd"} & broken.keys():
        over = max(limit.predicted / limit.limit for what, limit in broken.items() if what in ("hours", "usd"))  # type: ignore[operator]
        found += _for_time(rehearsal, over, spent, shares)
    if "disk_gb" in broken:
        found += _for_disk(rehearsal, disk)
    return list(dict.fromkeys(found))


def _for_memory(rehearsal: Rehearsal, device: Device, limit: Limit, memory: dict[str, Any]) -> Iterator[str]:
    stages = [seen for seen in rehearsal.seen if seen.updates]
    if not stages:
        return
    settings = rehearsal.recipe.train
    count, shard = device.count, settings.shard == "fsdp" and device.count > 1
    largest = max(stages, key=lambda seen: prediction.sums(seen)["total"])
    room = limit.limit * 1e9
    here = prediction.sums(largest, devices=count, shard=shard)["total"] if device.here else 0.0
    beside = max(memory["total"] - here, 0.0) if device.here else RESERVE  # what is not a tensor of a step
    pieces = prediction.least_pieces(largest, room, devices=count, shard=shard, beside=beside)
    if pieces is not None and pieces > memory["pieces"]:
        rows = -(-largest.batch_size // count // pieces)
        total = prediction.sums(largest, devices=count, pieces=pieces, shard=shard)["total"] + beside
        yield (
            f"train.micro_batch={max(rows, 1)}: batches of {largest.batch_size} in {pieces} pieces, to the same result; "
            f"about {gigabytes(total)} instead of {gigabytes(memory['total'])}"
        )
    if memory["teacher"] > 0.02 * memory["total"] and largest.teaches == "frozen" and not _teacher_learns(stages):
        yield (
            f"limbeck cache {rehearsal.recipe.name} --out answers, then teacher=answers: the teacher's {gigabytes(memory['teacher'])} are not there "
            "while the student learns"
        )
    kept = memory["activations"] > 0.05 * memory["total"]
    if kept and largest.precision == "fp32" and not (device.cuda and settings.precision == "auto"):
        yield (
            f"train.precision=bf16: what is kept for the backward pass ({gigabytes(memory['activations'])}) takes about half"
        )
    spread = memory["student"] + memory["gradients"] + memory["optimizer"]
    if not shard and spread > 0.2 * memory["total"]:
        yield (
            f"train.shard=fsdp with --gpus N: the student's weights, gradients and optimiser state ({gigabytes(spread)}) are divided by N"
        )
    if memory["ema"] > 0.05 * memory["total"]:
        yield f"train.ema=null: {gigabytes(memory['ema'])} less (the result changes)"
    if memory["optimizer"] > 0.2 * memory["total"] and largest.optimizer.startswith("adam"):
        yield (
            f"train.optimizer=sgd: without Adam's two moments {gigabytes(memory['optimizer'])} less (the result changes)"
        )
    if pieces is None:
        rest = memory["total"] - memory["activations"] - memory["temporary"]
        yield (
            f"with the smallest pieces about {gigabytes(rest)} remain, which is more than {gigabytes(room)}: a smaller student or teacher, or more memory"
        )


def _for_time(rehearsal: Rehearsal, over: float, spent: dict[str, Any], shares: dict[str, float]) -> Iterator[str]:
    train = rehearsal.recipe.train
    stages = [seen for seen in rehearsal.seen if not seen.control]
    if shares.get("teacher", 0.0) > 0.1 and not _teacher_learns(stages):
        yield (
            f"limbeck cache {rehearsal.recipe.name} --out answers, then teacher=answers: the teacher takes {shares['teacher']:.0%} of a step, and is "
            "asked once instead of in every epoch"
        )
    if shares.get("data", 0.0) > 0.1:
        yield f"train.workers={train.workers + 2}: {shares['data']:.0%} of the time is waiting for data"
    if spent["control"] > 0.05 * spent["total"]:
        yield (
            f"control=none, or the run folder of a control that is there: {duration(spent['control'])} less (then nothing says what the teacher brought)"
        )
    if spent["validating"] > 0.1 * spent["total"]:
        yield f"train.validate_every={max(2, 2 * train.validate_every)}: validation takes {duration(spent['validating'])}"
    budget = "steps" if train.steps else "epochs"
    number = train.steps or train.epochs or 1
    fewer = int(number / over)
    if fewer >= 1:
        yield f"train.{budget}={fewer} instead of {number} (the result changes), or a limit {over:.3g} times as high"


def _for_disk(rehearsal: Rehearsal, disk: dict[str, float]) -> Iterator[str]:
    largest = max(disk, key=lambda name: disk[name] if name != "total" else 0.0)
    yield f"most of it are {largest} ({gigabytes(disk[largest])}); the run folder can lie on another disk: --out"
    if rehearsal.checkpoints.get("control"):
        yield (
            f"control=none: {gigabytes(2 * rehearsal.checkpoints['control'])} less of checkpoints (then nothing says what the teacher brought)"
        )


def _teacher_learns(stages: list[Seen]) -> bool:
    """Whether some stage asks the teacher with gradients, or trains it: such a one cannot be stored."""
    own = any(seen.parameters["learning"] > seen.parameters["student"] + seen.parameters["method"] for seen in stages)
    return own or any(seen.teaches != "frozen" for seen in stages)
