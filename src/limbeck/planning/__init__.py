"""Plan before you pay: does it fit, how long will it take, what will it cost, and what will the student save."""

from __future__ import annotations

import copy
import gc
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from limbeck.engine import random_state
from limbeck.engine.processes import World
from limbeck.engine.trainer import Observer, Silent, Stopped
from limbeck.errors import RecipeError
from limbeck.planning import devices, prediction, watching
from limbeck.planning.advice import Limit, advice
from limbeck.planning.rehearsal import Rehearsal
from limbeck.planning.shortening import ShortRecipe
from limbeck.planning.watching import bytes_of, state_of
from limbeck.recipe import Recipe, RecipeKeys
from limbeck.writing import without_nan

if TYPE_CHECKING:
    from limbeck.run import Run

__all__ = ["Plan", "of_process", "plan"]


@dataclass(frozen=True)
class Plan:
    """What a run will take, before it is paid for.

    Attributes:
        fits: whether everything that is known keeps to the recipe's `limit` and to what the device has.
        memory_gb: the peak on one device, in GB of 1e9 bytes.
        hours: to the end of the run, from the call on; None on a device whose speed is not known.
        disk_gb: the run folder at its largest.
        usd: where a price was given, and the hours are known.
        advice: what to change where it does not fit.
        notes: what is estimated, assumed or not known.
        details: all of it, as `to_dict` gives it.
    """

    fits: bool
    memory_gb: float
    hours: float | None
    disk_gb: float
    usd: float | None
    advice: list[str]
    notes: list[str]
    details: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `limbeck plan --json` prints it."""
        own = {
            name: getattr(self, name) for name in ("fits", "memory_gb", "hours", "disk_gb", "usd", "advice", "notes")
        }
        return without_nan(own | self.details)


def plan(
    recipe: Recipe | Run | str | Path | None = None,
    /,
    *settings: str,
    on: str | None = None,
    price: float | None = None,
    speed: float | None = None,
    observer: Observer | None = None,
    **keys: Unpack[RecipeKeys],
) -> Plan:
    """Rehearse a recipe for some seconds and say what all of it will take.

    A few real steps of every stage are made, with the control, checkpoints, validation and measuring around them, in a
    folder that is removed. Networks, methods and tasks that were given in Python are copied before, and all random
    generators are put back: nothing is trained on, and nothing is left behind.

    Args:
        recipe: as for `distill`, with `settings` and `keys`.
        on: `24GB`, `h100`, `4x24GB`: predict the memory there, from tensors measured here; None: this machine.
        price: US dollars for an hour of one device.
        speed: how many times as fast as this machine all of `on` is; without it hours there are not known.
        observer: told what is rehearsed.

    Raises:
        RecipeError: this cannot be run, or `on` is no device.
    """
    given = _resolved(recipe, settings, dict(keys))
    gc.collect()
    devices.forget_peak()
    return _plan(given, 0.0, on, price, speed, observer)


def of_process(
    recipe: str,
    *settings: str,
    on: str | None = None,
    price: float | None = None,
    speed: float | None = None,
    observer: Observer | None = None,
) -> Plan:
    """The same for a process that would do nothing but run this recipe: its start counts, in time and in memory."""
    before = time.process_time()  # what it computed so far were imports, which a run does too
    return _plan(_resolved(recipe, settings, {}), before, on, price, speed, observer)


def _plan(
    wanted: Recipe,
    before: float,
    on: str | None,
    price: float | None,
    speed: float | None,
    observer: Observer | None,
) -> Plan:
    device = devices.parse(on)
    for name, value in (("price", price), ("speed", speed)):
        if value is not None and not value > 0:
            raise RecipeError(f"{name}={value!r}: give a number above 0.")
    if speed is not None and device.here:
        raise RecipeError("speed= compares another device with this one: say which, on=h100")
    base, began = devices.resident(), watching.now()
    world = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
    generators = random_state.capture_all(world.device)
    place = Path(tempfile.mkdtemp(prefix="limbeck-plan-"))
    try:
        copied, copies = _copied(wanted)
        half = device.cuda and not device.here and world.device.type == "cpu" and wanted.train.precision == "auto"
        rehearsal = Rehearsal(
            *(copied, place / "run", world, _Few(observer or Silent()), "limbeck plan"),
            half=half,
            mind_limit=device.here,
            beside=Path("runs") / wanted.name,
        )
        rehearsal.live()
        result = json.loads((place / "run" / "result.json").read_text())
        peak = _peak(world)
        stored = prediction.disk(rehearsal, place / "run")
        wall = before + watching.now() - began
    except Stopped as stopped:
        raise KeyboardInterrupt from stopped
    finally:
        random_state.restore_all(generators, world.device)
        shutil.rmtree(place, ignore_errors=True)
    return _told(rehearsal, device, result, stored, wall, peak, base, copies, price=price, speed=speed)


class _Few(Silent):
    """Of a rehearsal an observer is told only which stages it goes through."""

    def __init__(self, observer: Observer):
        self.observer = observer

    def stage(self, name: str, steps: int, done: int) -> None:
        self.observer.say(f"rehearsing {name}, which has {steps:,} steps")


def _resolved(recipe: Any, settings: tuple[str, ...], keys: dict[str, Any]) -> Recipe:
    recipe = getattr(recipe, "recipe", recipe)  # a run is planned again
    if recipe is None:
        return Recipe.of(keys, *settings)
    found = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, partial=True)
    return found.with_keys(keys).with_settings(*settings)


def _copied(recipe: Recipe) -> tuple[ShortRecipe, int]:
    """The recipe with networks of its own, so that those that were given in Python are not trained; and their bytes."""
    tree = recipe.tree()
    try:
        own = copy.deepcopy({key: value for key, value in tree.items() if key != "data"})
    except (TypeError, RuntimeError) as error:
        raise RecipeError(
            f"a network or method that was given in Python cannot be copied ({error}), and a plan does not train what it is given. "
            "Name it as module:attribute."
        ) from error
    live = _modules(own)
    return ShortRecipe(own | {"data": tree["data"]}, name=recipe.name), bytes_of(t for m in live for t in state_of(m))


def _modules(value: Any) -> list[torch.nn.Module]:
    if isinstance(value, torch.nn.Module):
        return [value]
    if isinstance(getattr(value, "model", None), torch.nn.Module):
        return [value.model]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [module for entry in inner for module in _modules(entry)]


def _peak(world: World) -> int:
    if world.device.type != "cuda":
        return devices.peak()
    free, total = torch.cuda.mem_get_info(world.device)
    context = total - free - torch.cuda.memory_reserved(world.device)
    return int(torch.cuda.max_memory_reserved(world.device) + context)


def _told(
    rehearsal: Rehearsal,
    device: devices.Device,
    result: dict[str, Any],
    stored: dict[str, float],
    wall: float,
    peak: int,
    base: int,
    copies: int,
    *,
    price: float | None,
    speed: float | None,
) -> Plan:
    recipe = rehearsal.recipe
    shard = recipe.train.shard == "fsdp" and device.count > 1
    memory = prediction.memory(rehearsal, device, peak=peak, base=base, copies=copies, shard=shard)
    spent = prediction.seconds(rehearsal, wall)
    sections, terms = prediction.shares(rehearsal)
    hours = spent["total"] / 3600 if device.here else spent["total"] / 3600 / speed if speed is not None else None
    usd = hours * price * device.count if hours is not None and price is not None else None
    amounts = {"memory_gb": memory["total"] / 1e9, "hours": hours, "disk_gb": stored["total"] / 1e9, "usd": usd}
    limits = [Limit(name, amounts[name], value, "limit") for name, value in recipe.limit if value is not None] + [
        Limit("memory_gb", amounts["memory_gb"], device.bytes / 1e9, device.name)
    ]
    if device.here:
        limits.append(Limit("disk_gb", amounts["disk_gb"], shutil.disk_usage(Path.cwd()).free / 1e9, "this disk"))
    limits.sort(key=lambda limit: limit.limit, reverse=True)  # of two the smaller one counts
    told = advice(rehearsal, device, limits, memory=memory, spent=spent, shares=sections, disk=stored)
    details = {
        "on": {"device": device.name, "count": device.count, "memory_gb": device.bytes / 1e9, "here": device.here},
        "recipe": recipe.name,
        "method": recipe.method_name(),
        "limits": [limit.to_dict() for limit in limits],
        "parameters": _parameters(rehearsal),
        "memory": memory,
        "time": {"seconds_here": spent, "per_step_s": _steps(rehearsal), "shares": sections, "terms": terms},
        "disk": stored,
        "stages": [_stage(seen) for seen in rehearsal.seen],
        "inference": _inference(result),
    }
    held = all(limit.held for limit in limits)
    notes = _notes(rehearsal, device, memory, price=price, speed=speed)
    return Plan(held, amounts["memory_gb"], hours, amounts["disk_gb"], usd, told, notes, details)  # type: ignore[arg-type]


def _parameters(rehearsal: Rehearsal) -> dict[str, int]:
    """Of the student, the teachers, and the largest stage's own modules."""
    own = [seen.parameters for seen in rehearsal.seen if not seen.control]
    return {name: max((p[name] for p in own), default=0) for name in ("student", "teacher", "method", "learning")}


def _steps(rehearsal: Rehearsal) -> dict[str, float]:
    return {
        ("control." if seen.control else "") + seen.name: prediction.per_row(seen) * seen.batch_size
        for seen in rehearsal.seen
        if seen.done
    }


def _stage(seen: Any) -> dict[str, Any]:
    own = prediction.stage_seconds(seen)
    return {
        "name": seen.name,
        "method": seen.method,
        "control": seen.control,
        "steps": seen.steps,
        "epochs": seen.epochs,
        "seconds": own["training"] + own["validating"] + own["saving"],
        "step_s": prediction.per_row(seen) * seen.batch_size,
        "rehearsed_steps": seen.done,
        "pieces": seen.pieces,
        "precision": seen.precision,
        "parameters": seen.parameters,
        "activations": max((piece.kept for piece in seen.updates.values()), default=0),
        "memory": {name: int(value) for name, value in prediction.sums(seen).items()},
    }


def _inference(result: dict[str, Any]) -> dict[str, Any]:
    """Parameters, bytes and the latency of one sample on this machine: student, teacher, and how many times less."""
    names = ("parameters", "bytes", "latency_ms")
    student = {name: result["student"][name] for name in names}
    if not result["teacher"]:
        return {"student": student, "teacher": None, "times_less": None}
    teacher = {name: result["teacher"][name] for name in names}
    less = {
        name: teacher[name] / student[name] if teacher[name] is not None and student[name] else None for name in names
    }
    return {"student": student, "teacher": teacher, "times_less": less}


def _notes(
    rehearsal: Rehearsal, device: devices.Device, memory: dict[str, Any], *, price: float | None, speed: float | None
) -> list[str]:
    seen, limit = rehearsal.seen, rehearsal.recipe.limit
    found = []
    if not device.here:
        found.append(
            f"memory on {device.name} is predicted from tensors measured here, with {devices.RESERVE / 1e9:g} GB assumed for the device's own libraries"
        )
        if speed is None:
            found.append(
                f"seconds were measured on this machine; how fast {device.name} is, is not known, so there are no hours for it (speed=, --speed: how many times as fast)"
            )
        if any(piece.kept_half is not None for one in seen for piece in one.updates.values()):
            found.append("train.precision=auto is bf16 there: activations were measured under bf16 autocast here")
    if memory["pieces"] > 1:
        found.append(f"batches go through the networks in {memory['pieces']} pieces")
    if any(one.forced > 1 for one in seen):
        found.append("the rehearsal cut its batches further, since a whole one would not fit here; memory is scaled up")
    if rehearsal.procedure and rehearsal.procedure != "stages":
        stages = ", ".join(f"{one.name} {one.steps}" for one in seen if not one.control)
        found.append(
            f"{rehearsal.procedure} decides its stages while it runs; estimated from the steps they had in the rehearsal: {stages}"
        )
    if any(one.patient for one in seen):
        found.append("train.patience may end the run earlier; the time is the longest")
    if rehearsal.found_control is not None:
        found.append(f"the control was trained before ({rehearsal.found_control}) and costs nothing")
    if limit.hours is not None and not device.here and speed is None:
        found.append("limit.hours is not judged")
    if limit.usd is not None and (price is None or (not device.here and speed is None)):
        found.append(
            "limit.usd is not judged: that takes a price (price=, --price: US dollars for an hour of a device)"
        )
    if any(one.compiled for one in seen):
        found.append("the student is compiled; the time to do so is counted once")
    few = [one.name for one in seen if one.done and not one.timed]
    if few:
        found.append(f"too few steps to time {', '.join(few)} well")
    return found
