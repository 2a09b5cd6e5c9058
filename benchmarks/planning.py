"""How well `limbeck plan` predicts: twelve recipes, each planned and then run in fresh processes, in turn.

    python benchmarks/planning.py [--rounds 3] [--cpu] [--only NAME ...] [--out benchmarks/results/planning.json]

The memory is the peak of the run's process (VmHWM), the time its wall time from its start to its end; beside it stands
the CPU time of both processes, since wall times of a busy machine tell little (`--cpu` predicts and compares that
instead). One thread. The figure of a recipe is the
median over rounds of predicted / measured; `within` says how many of the recipes keep to 10 % (memory) and 20 % (time).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from limbeck.data import Data
from limbeck.data.tensors import TensorSplit

HERE = Path(__file__).resolve().parent
CHILD = """
import atexit, sys, time
from pathlib import Path
told, cpu, *words = sys.argv[1:]
if cpu == "cpu":
    import limbeck.planning.watching
    limbeck.planning.watching.now = time.process_time
atexit.register(lambda: Path(told).write_text(Path("/proc/self/status").read_text()))
from limbeck.cli import main
main(words)
"""


class CNN(nn.Module):
    """A convolutional classifier of 3 x 32 x 32 images, with batch normalisation."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, padding=1, stride=2)
        self.fc1 = nn.Linear(4 * width, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm1(self.conv1(image)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.fc2(self.fc1(self.conv3(x).relu().mean((2, 3))).relu())


class Pair(nn.Module):
    """Two CNNs, one for each of two images, joined."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.one, self.two = CNN(width), CNN(width)
        self.fc1 = nn.Linear(20, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.fc2(self.fc1(torch.cat([self.one(image), self.two(other)], 1)).relu())


class Transformer(nn.Module):
    """A transformer classifier of 64 tokens of width 48, cut from an image."""

    def __init__(self, width: int = 64, layers: int = 2):
        super().__init__()
        self.embed = nn.Linear(48, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(image.reshape(len(image), 64, 48))).mean(1))


class MLP(nn.Module):
    """Three wide layers: more weights than activations."""

    def __init__(self, width: int = 1024):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Flatten(), nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def images(rows: int = 2048, held: int = 256) -> Data:
    """Random images in pairs, with random labels."""
    g = torch.Generator().manual_seed(0)

    def part(n: int, start: int) -> TensorSplit:
        both = {name: torch.randn(n, 3, 32, 32, generator=g) for name in ("image", "other")}
        return TensorSplit(both | {"label": torch.randint(0, 10, (n,), generator=g)}, start)

    splits = {"train": part(rows, 0), "validation": part(held, rows), "test": part(held, rows + held)}
    labels = {"label": [str(i) for i in range(10)]}
    return Data(splits, {"image": "", "other": "", "label": ""}, labels, source="random images")


def recipe(
    method: Any, student: dict[str, Any], teacher: dict[str, Any] | None, *, control: str = "none", **train: Any
) -> dict[str, Any]:
    keys = {"task": "classification", "data": "planning:images", "method": method, "control": control}
    return keys | {"student": {"view": "image"} | student, "teacher": teacher, "train": train}


def network(name: str, **args: int) -> dict[str, Any]:
    return {"model": f"planning:{name}", "args": args, "view": ["image", "other"] if name == "Pair" else "image"}


MEMBERS = {"members": {"both": network("Pair", width=12), "other": network("CNN", width=12) | {"view": "other"}}}
RECIPES: dict[str, dict[str, Any]] = {
    "kd-cnn": recipe("kd", network("CNN"), network("CNN", width=32), epochs=5, batch_size=64),
    "kd-cnn-large-batch": recipe("kd", network("CNN"), network("CNN", width=32), epochs=5, batch_size=512),
    "kd-cnn-pieces-sgd": recipe(
        "kd", network("CNN", width=24), network("CNN"), epochs=5, batch_size=512, micro_batch=64, optimizer="sgd"
    ),
    "kd-cnn-control": recipe("kd", network("CNN"), network("CNN", width=32), control="train", epochs=3, batch_size=64),
    "supervised-cnn-ema": recipe("supervised", network("CNN", width=32), None, epochs=4, batch_size=128, ema=0.99),
    "kd-transformer": recipe("kd", network("Transformer"), network("Transformer", layers=4), epochs=3, batch_size=32),
    "kd-transformer-pieces-ema": recipe(
        *("kd", network("Transformer", width=96), network("Transformer")),
        **{"epochs": 3, "batch_size": 256, "micro_batch": 128, "ema": 0.99},
    ),
    "supervised-transformer": recipe(
        "supervised", network("Transformer", width=128), None, epochs=2, batch_size=128, optimizer="sgd"
    ),
    "kd-mlp": recipe("kd", network("MLP"), network("MLP", width=2048), steps=120, batch_size=64),
    "kd-mlp-sgd-control": recipe(
        *("kd", network("MLP", width=2048), network("MLP")),
        **{"control": "train", "steps": 50, "batch_size": 256, "optimizer": "sgd"},
    ),
    "mst-cnn": recipe("mst-distill", network("CNN", width=8), MEMBERS, epochs=3, batch_size=128),
    "mst-cnn-control-ema": recipe(
        *("mst-distill", network("CNN", width=12), MEMBERS),
        **{"control": "train", "epochs": 2, "batch_size": 64, "micro_batch": 32, "ema": 0.99},
    ),
}


def child(words: list[str], folder: Path, cpu: bool = False) -> dict[str, Any]:
    """Run the command line in a fresh process: wall and CPU seconds, peak bytes, and what it printed."""
    told = folder / "status"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent / 'src'}:{HERE}"}
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(told), "cpu" if cpu else "wall", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode not in (0, 3):
        raise RuntimeError(done.stderr)
    peak = next(int(line.split()[1]) * 1024 for line in told.read_text().splitlines() if line.startswith("VmHWM"))
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return {"wall_s": wall, "cpu_s": cpu, "peak": peak, "said": json.loads(done.stdout)}


def measured(name: str, rounds: int, cpu: bool) -> dict[str, Any]:
    """Plan and run one recipe, in turn."""
    entries = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPES[name]))
            planned = child(["plan", "recipe.yaml", "--json"], folder, cpu)
            run = child(["distill", "recipe.yaml", "--json", "--out", "run"], folder)
            size = sum(file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())
        said = planned["said"]
        entries.append(
            {
                "predicted": {k: said["time"]["seconds_here"][k] for k in ("total", "around")}
                | {"peak": said["memory_gb"] * 1e9, "disk": said["disk_gb"] * 1e9},
                "run": {k: run[k] for k in ("wall_s", "cpu_s", "peak")} | {"disk": size},
                "plan": {k: planned[k] for k in ("wall_s", "cpu_s", "peak")},
                "busy": {"plan": planned["cpu_s"] / planned["wall_s"], "run": run["cpu_s"] / run["wall_s"]},
            }
        )
    ratio = {
        "memory": statistics.median(e["predicted"]["peak"] / e["run"]["peak"] for e in entries),
        "time": statistics.median(e["predicted"]["total"] / e["run"]["cpu_s" if cpu else "wall_s"] for e in entries),
    }
    return {"ratio": ratio, "rounds": entries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--cpu", action="store_true", help="predict and measure CPU seconds: for a machine that is busy"
    )
    parser.add_argument("--only", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--out", type=Path)
    words = parser.parse_args()
    found = {}
    for name in words.only:
        found[name] = measured(name, words.rounds, words.cpu)
        ratio, last = found[name]["ratio"], found[name]["rounds"][-1]
        print(
            f"{name:28s} memory {ratio['memory']:.3f} of {last['run']['peak'] / 1e6:.0f} MB   time {ratio['time']:.3f} of "
            f"{last['run']['wall_s']:.1f} s (busy {last['busy']['run']:.0%}, CPU {last['run']['cpu_s']:.1f} s)   plan took {last['plan']['wall_s']:.1f} s",
            flush=True,
        )
    ratios = [entry["ratio"] for entry in found.values()]
    within = {
        "memory_10_percent": sum(abs(r["memory"] - 1) <= 0.1 for r in ratios),
        "time_20_percent": sum(abs(r["time"] - 1) <= 0.2 for r in ratios),
        "of": len(ratios),
    }
    print(within)
    if words.out:
        facts = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
        result = {
            "machine": facts,
            "seconds": "CPU" if words.cpu else "wall",
            "rounds": words.rounds,
            "within": within,
            "recipes": found,
        }
        words.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
