"""What the engine costs over a hand-written loop: a KD step with the same operations, timed in turn, and its memory.

    python benchmarks/overhead.py [--out benchmarks/results/overhead.json]

Both sides make the same batches, the same teacher pass under no_grad, the same cross-entropy + T^2 KL, the same clip and
fused AdamW step, and read the loss once per step. A third side is the loop as most people write it, with AdamW as torch
gives it when nothing is said. Blocks of steps alternate within one process; the figure is the median over
blocks of the ratio of the two medians. Memory is the peak of the process in a fresh process per side (CPU: resident
set; GPU: allocated).
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Trainer
from limbeck.method import Stage
from limbeck.methods.kd import KD
from limbeck.tasks import Task

TEMPERATURE = 4.0


class CNN(nn.Module):
    """A small convolutional classifier of 32 x 32 images."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * 64, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Transformer(nn.Module):
    """A small transformer classifier of sequences of 64 tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


def images(n: int) -> Tensor:
    return torch.randn(n, 3, 32, 32)


def tokens(n: int) -> Tensor:
    return torch.randint(0, 1000, (n, 64))


CASES: dict[str, dict[str, Any]] = {
    "cnn, batch 16": {"model": CNN, "student": 4, "teacher": 8, "data": images, "batch": 16},
    "cnn, batch 128": {"model": CNN, "student": 8, "teacher": 16, "data": images, "batch": 128},
    "cnn, batch 512": {"model": CNN, "student": 8, "teacher": 16, "data": images, "batch": 512},
    "transformer, batch 32": {"model": Transformer, "student": 64, "teacher": 128, "data": tokens, "batch": 32},
}


class ByHand:
    """The loop one would write."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        split: TensorSplit,
        batch: int,
        device: torch.device,
        fused: bool = True,
    ):
        self.student, self.teacher, self.split, self.batch, self.device = (
            student.train(),
            teacher.eval(),
            split,
            batch,
            device,
        )
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.01, fused=fused)

    def step(self, rows: Tensor) -> float:
        batch = {k: v.to(self.device) for k, v in self.split.__getitems__(rows).items()}
        with torch.no_grad():
            theirs = self.teacher(batch["x"])
        ours = self.student(batch["x"])
        log_ours, log_theirs = (F.log_softmax(z / TEMPERATURE, -1) for z in (ours, theirs))
        apart = TEMPERATURE**2 * F.kl_div(log_ours, log_theirs, reduction="batchmean", log_target=True)
        loss = F.cross_entropy(ours, batch["label"]) + apart
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


class ByLimbeck:
    """The engine's step, with its loader, logging of every 10th step, and checks."""

    def __init__(self, student: nn.Module, teacher: nn.Module, split: TensorSplit, batch: int, device: torch.device):
        from limbeck.engine.processes import World

        names = [str(i) for i in range(10)]
        data = Data({"train": split}, {"x": "", "label": ""}, {"label": names}, fingerprint="-", source="random")
        settings = TrainSettings(
            steps=10**6, epochs=None, batch_size=batch, lr=1e-3, schedule="constant", precision="fp32", save_every=1e9
        )
        task = Task("classification", labels=names)
        situation = Situation(
            Student(student, view="x"), Teacher(teacher, view="x"), task, data, settings, world=World(device=device)
        )
        method = KD(temperature=TEMPERATURE)
        settle(method, situation)
        self.trainer = Trainer(Stage("distil", method), situation, settings)
        self.split, self.device = split, device

    def step(self, rows: Tensor) -> float:
        from limbeck.engine.validate import to_device

        batch = to_device(self.split.__getitems__(rows), self.device)
        self.trainer._step(batch, 0, 0.0, time.monotonic())
        self.trainer._pause()
        return self.trainer.last_loss


def build(case: str, side: Any, device: torch.device) -> Any:
    """One side of a case, from the same seed."""
    made = CASES[case]
    torch.manual_seed(0)
    student, teacher = made["model"](made["student"]), made["model"](made["teacher"])
    split = TensorSplit({"x": made["data"](2048), "label": torch.randint(0, 10, (2048,))})
    return side(copy.deepcopy(student).to(device), teacher.to(device), split, made["batch"], device)


def rows_of(case: str, step: int) -> Tensor:
    return torch.randperm(2048, generator=torch.Generator().manual_seed(step))[: CASES[case]["batch"]]


def timed(case: str, blocks: int, device: torch.device) -> dict[str, Any]:
    """Alternating blocks of steps; ratio of medians per block, and the largest difference of the losses."""
    sides = {"by hand": build(case, ByHand, device), "limbeck": build(case, ByLimbeck, device)}
    sides["by default"] = build(case, partial(ByHand, fused=False), device)
    apart = 0.0
    for step in range(10):  # before rounding has had time to grow: the two sums are taken in another order
        by_hand, ours, _ = (side.step(rows_of(case, step)) for side in sides.values())
        apart = max(apart, abs(by_hand - ours) / abs(by_hand))
    ratios: list[float] = []
    against_default: list[float] = []
    medians: dict[str, list[float]] = {name: [] for name in sides}
    step = 10
    for block in range(blocks):
        times: dict[str, list[float]] = {name: [] for name in sides}
        order = list(sides) if block % 2 == 0 else list(sides)[::-1]
        size = 20
        for _ in range(size):
            rows = rows_of(case, step)
            for name in order:
                clock = time.perf_counter()
                sides[name].step(rows)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times[name].append(time.perf_counter() - clock)
            step += 1
        middle = {name: statistics.median(t) * 1e3 for name, t in times.items()}
        for name, value in middle.items():
            medians[name].append(value)
        ratios.append(middle["limbeck"] / middle["by hand"])
        against_default.append(middle["limbeck"] / middle["by default"])
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "ms_by_hand": statistics.median(medians["by hand"]),
        "ms_limbeck": statistics.median(medians["limbeck"]),
        "ratio": statistics.median(ratios),
        "ratio_against_default_adamw": statistics.median(against_default),
        "ratio_quartiles": [quartiles[0], quartiles[2]],
        "blocks": blocks,
        "largest_relative_difference_of_losses_in_10_steps": apart,
    }


def peak(case: str, side: str, device: torch.device) -> float:
    """MB at the peak of 20 steps, in this process."""
    made = build(case, {"by hand": ByHand, "limbeck": ByLimbeck}[side], device)
    for step in range(20):
        made.step(rows_of(case, step))
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()  # not getrusage, whose maximum a child inherits from its parent
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/overhead.json"))
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.peak:
        print(peak(*given.peak, device))
        return
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": given.device,
    }
    if device.type == "cuda":
        found["machine"] = torch.cuda.get_device_name()
    for case in CASES:
        found[case] = timed(case, given.blocks, device)
        memory: dict[str, list[float]] = {"by hand": [], "limbeck": []}
        for _ in range(3):
            for side in memory:
                command = [sys.executable, __file__, "--device", given.device, "--peak", case, side]
                memory[side].append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        middle = {side: statistics.median(values) for side, values in memory.items()}
        found[case] |= {
            "peak_mb_by_hand": middle["by hand"],
            "peak_mb_limbeck": middle["limbeck"],
            "peak_ratio": middle["limbeck"] / middle["by hand"],
        }
        print(case, json.dumps(found[case], indent=1))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
