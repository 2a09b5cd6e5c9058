"""What a cached teacher saves and costs: epochs with and without, reading, equality of the training, asking against a bare loop.

    python benchmarks/cached_teacher.py [--out benchmarks/results/cached-teacher.json] [--device cpu]

The teacher is an average of as many networks like the student as make its forward pass cost what the student's forward and
backward pass cost. Sides alternate, step by step and pass by pass, in one process; figures are medians. On a CPU the
clock is the process's own time, which other work on the machine does not lengthen (the elapsed time is given too); on a GPU
it is the elapsed time, with the device waited for.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.caching import filling, form
from limbeck.caching.asking import Asker
from limbeck.caching.writer import Folder, Writer
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Trainer
from limbeck.engine.validate import to_device
from limbeck.method import Stage
from limbeck.methods.kd import KD
from limbeck.recipe import Recipe
from limbeck.tasks import Task
from limbeck.teachers.stored import Stored

CLASSES, BATCH = 100, 64


class CNN(nn.Module):
    """A small convolutional classifier of 32 x 32 images."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * 64, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Committee(nn.Module):
    """The average of several networks: a forward pass of any cost."""

    def __init__(self, members: int):
        super().__init__()
        self.members = nn.ModuleList(CNN() for _ in range(members))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Clock:
    """Seconds of a call."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, function: Callable[[], Any]) -> tuple[float, float]:
        """Of this process, or of the device; and elapsed."""
        self._wait()
        own, elapsed = time.process_time(), time.perf_counter()
        function()
        self._wait()
        own, elapsed = time.process_time() - own, time.perf_counter() - elapsed
        return (elapsed if self.device.type == "cuda" else own), elapsed

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def alike(clock: Clock, device: torch.device) -> tuple[Committee, dict[str, float]]:
    """A teacher that costs what the student's forward and backward pass cost, and both costs."""
    x, y = torch.randn(BATCH, 3, 32, 32, device=device), torch.randint(0, CLASSES, (BATCH,), device=device)
    student = CNN().to(device)

    def both() -> None:
        F.cross_entropy(student(x), y).backward()

    def ahead(network: nn.Module) -> None:
        with torch.no_grad():
            network(x)

    members = 3
    for _ in range(5):  # on a busy machine the first guess may be off
        teacher = Committee(members).to(device).eval()
        times: dict[str, list[float]] = {"student": [], "teacher": []}
        for _ in range(50):
            times["student"].append(clock(both)[0])
            times["teacher"].append(clock(partial(ahead, teacher))[0])
        ratio = statistics.median(t / s for s, t in zip(*times.values()))
        better = max(1, round(members / ratio))
        if better == members:
            break
        members = better
    ms = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    return teacher, {
        "ms_student_forward_and_backward": ms["student"],
        "ms_teacher_forward": ms["teacher"],
        "teacher_over_student": ratio,
    }


def trainer(teacher: Teacher, student: nn.Module, data: Data, device: torch.device) -> Trainer:
    """A stage of KD, ready to be stepped."""
    settings = TrainSettings(
        steps=10**6, epochs=None, batch_size=BATCH, lr=1e-3, schedule="constant", precision="fp32", save_every=1e9
    )
    task = Task("classification", labels=data.labels["label"])
    situation = Situation(Student(student, view="x"), teacher, task, data, settings, world=World(device=device))
    method = KD(temperature=4.0)
    settle(method, situation)
    return Trainer(Stage("distil", method), situation, settings)


def epochs(online: Trainer, cached: Trainer, stored: Stored, count: int, clock: Clock) -> dict[str, Any]:
    """Steps of both in turn, and of reading alone, over whole epochs."""
    times: dict[str, list[float]] = {"online": [], "cached": [], "reading": []}
    apart = {}
    steps = 0
    for epoch in range(count):
        for batch in online.loader.epoch(epoch):
            shown = to_device(batch, online.world.device)
            for name, side in (("online", online), ("cached", cached))[:: 1 if steps % 2 else -1]:
                times[name].append(clock(partial(side._step, shown, epoch, 0.0, 0.0))[0])
            times["reading"].append(clock(partial(stored, shown, reads=["logits"]))[0])
            steps += 1
            if steps in (1, 10, 30, 100):
                apart[f"after {steps} steps"] = max(
                    float((a - b).detach().abs().max())
                    for a, b in zip(
                        online.situation.student.model.parameters(), cached.situation.student.model.parameters()
                    )
                )
    warm = {name: values[10:] for name, values in times.items()}
    ms = {name: statistics.median(values) * 1e3 for name, values in warm.items()}
    return {
        "steps": steps,
        "ms_per_step": ms,
        "online_over_cached": statistics.median(o / c for o, c in zip(warm["online"], warm["cached"])),
        "reading_share_of_a_cached_step": statistics.median(r / c for r, c in zip(warm["reading"], warm["cached"])),
        "largest_difference_of_weights": apart,
    }


def asking(teacher: Teacher, data: Data, recipe: Recipe, rounds: int, clock: Clock, folder: Path) -> dict[str, Any]:
    """Shard by shard in turn: a bare loop over the teacher, and the same rows asked, packed, hashed and written."""
    ready, _, header, _ = filling.prepare(recipe, World(device=clock.device))
    split = data.splits["train"]

    def bare(shard: form.Shard) -> None:
        with torch.no_grad():
            for low in range(shard.first, shard.first + shard.rows, BATCH):
                rows = list(range(low, min(low + BATCH, shard.first + shard.rows)))
                teacher.model(to_device(split.__getitems__(rows), clock.device)["x"])

    def stored(asked: Any) -> None:
        with Writer(place.path) as writer:  # its end waits for the disk, which a whole run does beside the asking
            writer.add(*next(asked))

    found: dict[str, list[tuple[float, float]]] = {"bare": [], "cache": []}
    for turn in range(rounds):
        place = Folder(folder / str(turn), header)
        place.begin()
        asked = Asker(ready, data, header, clock.device).ask(place.shards)
        for number, shard in enumerate(place.shards):
            sides = {"bare": partial(bare, shard), "cache": partial(stored, asked)}
            for name in list(sides)[:: 1 if (turn + number) % 2 else -1]:
                found[name].append(clock(sides[name]))
        place.end()
    seconds = {name: statistics.median(v[0] for v in values) for name, values in found.items()}
    rows = place.shards[0].rows
    return {
        "shards_timed": len(found["bare"]),
        "rows_per_shard": rows,
        "rows_per_s_bare": rows / seconds["bare"],
        "rows_per_s_cache": rows / seconds["cache"],
        "cache_over_bare": statistics.median(b[0] / c[0] for b, c in zip(*found.values())),
        "cache_over_bare_elapsed_with_the_disk_waited_for": statistics.median(
            b[1] / c[1] for b, c in zip(*found.values())
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cached-teacher.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    device = torch.device(given.device)
    clock = Clock(device)
    torch.manual_seed(0)
    network, costs = alike(clock, device)
    g = torch.Generator().manual_seed(1)
    columns = {
        "x": torch.randn(given.rows, 3, 32, 32, generator=g),
        "label": torch.randint(0, CLASSES, (given.rows,), generator=g),
    }
    names = {"label": [str(i) for i in range(CLASSES)]}
    data = Data({"train": TensorSplit(columns)}, {"x": "", "label": ""}, names, source="random")
    teacher = Teacher(network, view="x")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.of(
            {
                "data": data,
                "teacher": teacher,
                "train": {"batch_size": BATCH, "precision": "fp32"},
                "cache": {"signals": "logits", "dtype": "fp32"},
            }
        )
        form.SHARD_ROWS = 512  # a shard of a large data set has 8192 rows at most
        asked = asking(teacher, data, recipe, given.rounds, clock, Path(folder))
        form.SHARD_ROWS = given.rows // 16  # a batch's rows lie in as many shards as a large data set's do
        filling.cache(recipe, out=Path(folder) / "read")
        stored = Stored(Path(folder) / "read", of=teacher)
        student = CNN()
        online, cached = (trainer(t, copy.deepcopy(student).to(device), data, device) for t in (teacher, stored))
        trained = epochs(online, cached, stored, given.epochs, clock)
    found = {
        "machine": torch.cuda.get_device_name()
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "device": given.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "clock": "elapsed" if device.type == "cuda" else "the process's own time",
        "costs": costs,
        "training": trained,
        "asking": asked,
    }
    print(json.dumps(found, indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
