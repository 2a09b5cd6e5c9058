"""Generators of one to four steps: points of eight Gaussians, 8x8 digits, 28x28 digits; every method with the same CPU time, three seeds.

    python -m benchmarks.generation --packs FOLDER [--sets ring digits mnist digits-longer] [--seeds 0 1 2] [--work FOLDER]

FOLDER holds digits_image_audio (for mnist: 5,000 of its training pictures). The teacher of the points is exact, a formula; those of
pictures are flows trained here on the data, unguided. Every student begins with the weights of such a flow. One method after another is
given `cpu_seconds` of one core for training, whatever a step of it costs: steps are counted by a short probe before. Of three
learning rates per method the best is taken, by a seed and rows that the figures do not use (mnist takes that of digits). digits-longer
is digits with four times the time, to see what that changes.
Methods have their defaults but for what `ARMS` says; none is guided. Distances are to held-out data: sliced Wasserstein for points, the
Frechet distance of a classifier's 64 features for pictures. The figures go to benchmarks/evidence/generation-SET.json;
`python benchmarks/tables.py` makes the page. The same call goes on after a stop.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.command_line import some_of, words
from torch import Tensor, nn

import limbeck
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.trainer import Silent
from limbeck.evaluation import generation, intervals
from limbeck.method import Progress
from limbeck.models.toy import ring

HERE = Path(__file__).resolve().parent
TUNING, PROBE = 99, 40
BASES = ("endpoints", "consistency")
RING = {"modes": 8, "std": 0.05, "labels": [0, 1] * 4}


@dataclass(frozen=True)
class Arm:
    """A method, the numbers of steps it is trained for, and those it is measured at (None: the one it was trained for).

    `optimizer`: the published one, where the method's game is known to need it.
    """

    method: dict[str, Any]
    trained: tuple[int, ...] = (1,)
    measured: tuple[int, ...] | None = None
    rounds: Callable[[int], int] = lambda steps: 1  # stages that have the run's steps each
    optimizer: dict[str, Any] | None = None

    def options(self, steps: int, budget: int) -> dict[str, Any]:
        """The method for so many sampling steps, with `budget` training steps in all its stages."""
        own = {key: value(budget) if callable(value) else value for key, value in self.method.items()}
        return own if len(self.trained) == 1 and self.trained[0] == 1 else own | {"sampling_steps": steps}


ANY = (1, 2, 4)
ARMS: dict[str, Arm] = {
    "denoising, more of it": Arm({"use": "denoising", "solver": "ddim"}, (4,), ANY),
    "endpoints": Arm({"use": "endpoints", "teacher_steps": 10, "teacher_solver": "ddim"}),
    "consistency": Arm({"use": "consistency"}, (4,), ANY),
    "lcm": Arm({"use": "lcm", "guidance": 1.0}, (4,), ANY),
    "scott": Arm({"use": "scott", "guidance": 1.0, "judge_lr_ratio": 1.0}, (4,), ANY),
    "scott without GAN": Arm({"use": "scott", "guidance": 1.0, "gan_weight": 0.0}, (4,), ANY),
    "mlcm": Arm(
        {
            "use": "mlcm",
            "segments": 4,
            "guidance": 1.0,
            "milestones": lambda budget: {"steps": max(1, round(0.2 * budget))},
        },
        (4,),
        ANY,
    ),
    "progressive": Arm({"use": "progressive", "first_steps": 8}, ANY, rounds=lambda steps: {1: 4, 2: 3, 4: 2}[steps]),
    "boot": Arm({"use": "boot"}),
    "vsd": Arm({"use": "vsd", "guidance": 1.0, "drop": 0.0}),
    "snoopi": Arm({"use": "snoopi", "guidance": [0.5, 1.5]}),
    "dmd2": Arm({"use": "dmd2"}, ANY),
    "dmd2, a critic step each": Arm({"use": "dmd2", "critic_steps": 1}),
    "dmd2 with GAN": Arm({"use": "dmd2", "gan_weight": 3e-3}, ANY),
    "sid": Arm({"use": "sid"}),
    "sim": Arm({"use": "sim"}),
    "gdd": Arm({"use": "gdd", "layers": None}, optimizer={"use": "adam", "betas": [0, 0.99]}),
    "tdm": Arm({"use": "tdm", "guidance": 1.0}, ANY),
    "twinflow": Arm({"use": "twinflow"}, (4,), ANY),
}


@dataclass(frozen=True)
class Bed:
    """A set of data, its networks, and what is spent on it."""

    notes: str
    metric: str
    student: dict[str, Any]
    base: dict[str, Any]
    train: dict[str, Any]
    rates: tuple[float, ...]
    cpu_seconds: float
    count: int
    steps: tuple[int, ...] = ANY
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()  # the arms; none named: all
    longer: str | None = None  # the set whose data, teacher and classifier this one takes for longer trainings
    layers: tuple[str, ...] = ("inputs", "down", "inner.0", "inner.1")  # four scales, as in GDD

    @property
    def arms(self) -> dict[str, Arm]:
        return {name: ARMS[name] for name in self.only or ARMS if name not in self.without}


def network(kind: str, **args: Any) -> dict[str, Any]:
    return {"model": f"limbeck.models.toy:{kind}", "args": args}


FLOW = {"noise": "flow", "head": "velocity"}
PLAIN = {"select": "last", "validate_every": 100_000, "ema": 0.99, "warmup": 0.05}
BEDS = {
    "ring": Bed(
        notes="eight Gaussians on a circle (standard deviation 0.05), every other one of the same class; 8,192 points",
        metric="sliced_wasserstein",
        student=network("PointDenoiser", width=128, classes=2, **FLOW),
        base={"steps": 6000, "batch_size": 256, "lr": 1e-3, **PLAIN},
        train={"batch_size": 256, **PLAIN},
        rates=(5e-5, 2e-4, 1e-3),
        cpu_seconds=12.0,
        layers=("inputs", "hidden.0", "hidden.1"),
        count=2048,
    ),
    "digits": Bed(
        notes="the 1,797 handwritten digits of scikit-learn, 8x8, 1,437 of them for training",
        metric="frechet",
        student=network("PictureDenoiser", width=32, classes=10, **FLOW),
        base={"steps": 8000, "batch_size": 64, "lr": 1e-3, "precision": "bf16", **PLAIN},
        train={"batch_size": 64, "precision": "bf16", **PLAIN},
        rates=(2e-5, 1e-4, 5e-4),
        cpu_seconds=20.0,
        count=1437,
        steps=(1, 4),
    ),
    "mnist": Bed(
        notes="5,000 training pictures of MNIST, 28x28, and 5,000 test pictures",
        metric="frechet",
        student=network("PictureDenoiser", size=28, width=16, classes=10, **FLOW),
        base={"steps": 5000, "batch_size": 64, "lr": 1e-3, "precision": "bf16", **PLAIN},
        train={"batch_size": 32, "precision": "bf16", **PLAIN},
        rates=(),
        cpu_seconds=30.0,
        count=2000,
        steps=(1, 4),
        without=("dmd2, a critic step each", "scott without GAN", "progressive 4", "dmd2 with GAN 4"),
    ),
}
BEDS["digits-longer"] = replace(
    BEDS["digits"],
    notes="the same digits and the same teacher, four times the time, for what was not settled or what that is held against",
    cpu_seconds=80.0,
    longer="digits",
    only=(
        *("endpoints", "consistency", "scott", "dmd2", "dmd2, a critic step each", "dmd2 with GAN"),
        *("sid", "sim", "gdd", "tdm", "twinflow"),
    ),
    without=("tdm 1",),
)


@cache
def points() -> tuple[Tensor, Tensor]:
    made = ring(**RING)
    return made.draw(8192 + 512 + 512 + 2 * 4096, torch.Generator().manual_seed(0))


def data(name: str, packs: str) -> Data:
    """Training rows; few for the run's own validation and test, which nothing here is judged by."""
    (x, label), (held, of) = rows(name, packs, "train"), rows(name, packs, "test")
    column = "x" if name == "ring" else "image"
    few = {"train": (x, label), "validation": (held[:64], of[:64]), "test": (held[:128], of[:128])}
    splits, first = {}, 0
    for part, (values, classes) in few.items():
        splits[part] = TensorSplit({column: values, "label": classes}, first)
        first += len(values)
    return Data(splits, {column: "", "label": ""}, {"label": [str(c) for c in label.unique().tolist()]}, source=name)


@cache
def rows(name: str, packs: str, part: str) -> tuple[Tensor, Tensor]:
    """Samples (pictures in [-1, 1]) and classes of `train` or `test`."""
    if name == "ring":
        x, label = points()
        return (x[:8192], label[:8192]) if part == "train" else (x[-8192:], label[-8192:])
    if name == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        found = load_digits()
        at = train_test_split(np.arange(len(found.target)), test_size=360, stratify=found.target, random_state=0)
        chosen = at[0] if part == "train" else at[1]
        x = torch.from_numpy(found.images[chosen]).float()[:, None] / 8 - 1
        return x, torch.from_numpy(found.target[chosen]).long()
    found = np.load(Path(packs) / "digits_image_audio" / "mnist.npz")
    x = torch.from_numpy(found[f"x_{part}"][:5000]).float()[:, None] / 127.5 - 1
    return x, torch.from_numpy(found[f"y_{part}"][:5000].astype(np.int64))


class Judge(nn.Module):
    """A classifier with 64 features before its last layer: a perceptron for 8x8, two convolutions before it for 28x28."""

    def __init__(self, size: int) -> None:
        super().__init__()
        small = size < 16
        convolutions = [nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2, 2), nn.ReLU()]
        inputs = size * size if small else 32 * (size // 4) ** 2
        self.body = nn.Sequential(*([] if small else convolutions), nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU())
        self.features, self.head = nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.features(self.body(x)).relu()
        return {"embedding": h, "logits": self.head(h)}


def judge(name: str, packs: str, folder: Path) -> Judge | None:
    """Trained on the training rows alone; kept."""
    if name == "ring":
        return None
    x, label = rows(name, packs, "train")
    torch.manual_seed(0)
    model, file = Judge(x.shape[-1]), folder / "judge.pt"
    if file.exists():
        model.load_state_dict(torch.load(file))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(800):
        at = torch.randint(len(x), (128,))
        loss = nn.functional.cross_entropy(model(x[at])["logits"], label[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), file)
    return model.eval()


class Clock(Silent):
    """The process' CPU time at every step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def step(self, progress: Progress, loss: float, samples_per_s: float) -> None:
        self.at.append(time.process_time())


class Bench:
    """One bed: its teacher, its judge, its figures."""

    def __init__(self, name: str, given: argparse.Namespace):
        self.bed, self.packs, self.folder = BEDS[name], str(given.packs), (given.work / name).resolve()
        self.set, self.name = self.bed.longer or name, name
        self.home = self.folder.with_name(self.set)
        for folder in (self.folder, self.home):
            folder.mkdir(parents=True, exist_ok=True)
        self.keys: dict[str, Any] = {
            "task": "generation",
            "data": lambda: data(self.set, self.packs),
            "control": "none",
            "evaluate": [],
        }
        base = self.home / "base"
        self.base = str(
            limbeck.distill(
                **self.keys, student=self.bed.student, method="denoising", train=self.bed.base, seed=0, out=base
            ).folder
        )
        self.teacher = {"model": "limbeck.models.toy:ring", "args": RING} if name == "ring" else self.base
        self.judge = judge(self.set, self.packs, self.home)

    def steps(self, name: str, steps: int) -> int:
        """How many training steps the budget holds, counted once."""
        file = self.folder / "probes.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        key = f"{name} {steps}"
        if key not in known:
            arm, clock, place = ARMS[name], Clock(), self.folder / "probe"
            shutil.rmtree(place, ignore_errors=True)
            first = self.epoch() if name == "endpoints" else 0
            rounds = arm.rounds(steps)
            self.run(name, self.options(name, steps, PROBE), first + PROBE, 1e-5, 0, place, clock)
            spent = np.diff(clock.at)
            usual = float(np.mean(spent[first + 5 : first + PROBE - 1] if rounds == 1 else np.sort(spent)[:-rounds]))
            dear = float(spent[:first].sum()) - first * usual if first else 0.0
            known[key] = {"ms": 1000 * usual, "steps": int((self.bed.cpu_seconds - dear) / usual)}
            file.write_text(json.dumps(known, indent=1))
        return int(known[key]["steps"])

    def options(self, name: str, steps: int, budget: int) -> dict[str, Any]:
        """The arm's method with what this bed's networks have."""
        options = ARMS[name].options(steps, budget)
        return options | {"layers": list(self.bed.layers)} if "layers" in options else options

    def epoch(self) -> int:
        return -(-len(rows(self.set, self.packs, "train")[0]) // self.bed.train["batch_size"])

    def run(
        self, name: str, method: dict[str, Any], steps: int, rate: float, seed: int, out: Path, observer: Any
    ) -> Path:
        train: dict[str, Any] = self.bed.train | {"steps": steps, "lr": rate}
        if ARMS[name].optimizer is not None:
            train["optimizer"] = ARMS[name].optimizer
        teacher = {} if method["use"] == "gdd" or method["use"] == "denoising" else {"teacher": self.teacher}
        return limbeck.distill(
            **self.keys,
            **teacher,
            student=self.base,
            method=method,
            train=train,
            seed=seed,
            out=out,
            observer=observer,
        ).folder

    def trained(self, name: str, steps: int, rate: float, seed: int) -> dict[str, Any]:
        """One training and its figures at every number of steps it is measured at; kept."""
        arm, words = ARMS[name], name.replace(",", "").replace(" ", "-")
        file = self.folder / "measured" / f"{words}-{steps}-{rate:g}-{seed}.json"
        if file.exists():
            return json.loads(file.read_text())
        file.parent.mkdir(exist_ok=True)
        budget = self.steps(name, steps)
        place, clock = self.folder / "run", Clock()
        shutil.rmtree(place, ignore_errors=True)
        options = self.options(name, steps, budget)
        first = budget // arm.rounds(steps)
        if name == "mlcm":
            first = budget - options["milestones"]["steps"]
        began = time.process_time()
        found: dict[str, Any] = {"steps": budget, "figures": {}}
        try:
            self.run(name, options, max(1, first), rate, seed, place, clock)
            found["cpu_seconds"] = clock.at[-1] - clock.at[0]
            network = limbeck.Student(str(place)).model
            for n in arm.measured or (steps,):
                if n in self.bed.steps:
                    found["figures"][str(n)] = self.measured(network, n, seed, "train" if seed == TUNING else "test")
        except (FloatingPointError, limbeck.RecipeError) as error:
            found["failed"] = str(error)
        found["cpu_in_all"] = time.process_time() - began
        file.write_text(json.dumps(found, indent=1))
        print(
            self.name,
            name,
            steps,
            rate,
            seed,
            {n: round(v[self.bed.metric], 4) for n, v in found["figures"].items()},
            flush=True,
        )
        return found

    def measured(self, network: Any, steps: int, seed: int, part: str, **sampling: Any) -> dict[str, float]:
        """Figures of samples with the classes of training rows, against training or test rows."""
        real, _ = rows(self.set, self.packs, part)
        label = rows(self.set, self.packs, "train")[1][: self.bed.count]
        x = self.samples(network, seed, steps=steps, **sampling)
        return self.figures(x, real[:2048] if part == "test" else real[-2048:], label)

    @torch.no_grad()
    def samples(self, network: Any, seed: int, **sampling: Any) -> Tensor:
        """One for each of the first training rows, of its class, from noise that the seed decides."""
        how = replace(network.sampling, **sampling)
        g = torch.Generator().manual_seed(10_000 + seed)
        made = []
        for piece in rows(self.set, self.packs, "train")[1][: self.bed.count].split(512):
            z = torch.randn(len(piece), *network.shape, generator=g)
            given = network.understood(piece) if network.conditions == "class" else {}
            made.append(network.generate(z, given, sampling=how))
        return torch.cat(made)

    def figures(self, x: Tensor, real: Tensor, label: Tensor) -> dict[str, float]:
        """Of points as they are, of pictures in the judge's features."""
        if self.judge is None:
            found = {name: getattr(generation, name)(x, real) for name in ("sliced_wasserstein", "mmd")}
            found["modes"] = generation.modes_covered(x, ring(**RING).means)
            return found | generation.neighbourhoods(x, real)
        (ours, theirs), measures = (self.judge(v) for v in (x, real)), ("frechet", "kernel_distance")
        a, b = ours["embedding"], theirs["embedding"]
        found = {name: getattr(generation, name)(a, b) for name in measures} | generation.neighbourhoods(a, b)
        found["diversity"] = generation.diversity(a, label)
        return found | {"conditional_accuracy": generation.conditional_accuracy(ours["logits"], label)}

    def rates(self, name: str) -> dict[str, float]:
        """Which learning rate each number of steps takes; what is in rates.json is not tried again."""
        file = self.folder / "rates.json"
        chosen = json.loads(file.read_text()).get(name, {}) if file.exists() else {}
        for steps in self.trained_for(name):
            if str(steps) in chosen:
                continue
            if not self.bed.rates:
                other = json.loads((self.folder.parent / "digits" / "rates.json").read_text())
                chosen[str(steps)] = other[name][str(steps)]
                continue
            found = {rate: self.trained(name, steps, rate, TUNING)["figures"] for rate in self.bed.rates}

            def score(rate: float, found: dict[float, Any] = found) -> float:
                values = [figures[self.bed.metric] for figures in found[rate].values()]
                return statistics.fmean(values) if values else float("inf")

            chosen[str(steps)] = min(self.bed.rates, key=score)
        return chosen

    def trained_for(self, name: str) -> list[int]:
        arm = ARMS[name]
        return [n for n in arm.trained if n in self.bed.steps and f"{name} {n}" not in self.bed.without]

    def all(self, seeds: list[int]) -> dict[str, Any]:
        """The evidence: references, and every arm at every number of steps."""
        file, arms = self.folder / "rates.json", []
        rates = json.loads(file.read_text()) if file.exists() else {}
        for name in self.bed.arms:
            rates[name] = self.rates(name)
            file.write_text(json.dumps(rates, indent=1))
        for seed in seeds:
            for name in self.bed.arms:
                for steps in self.trained_for(name):
                    self.trained(name, steps, rates[name][str(steps)], seed)
        for name, arm in self.bed.arms.items():
            for steps in self.trained_for(name):
                rate = rates[name][str(steps)]
                runs = {seed: self.trained(name, steps, rate, seed) for seed in seeds}
                for n in arm.measured or (steps,):
                    if n in self.bed.steps:
                        own = {"arm": name, "method": arm.method["use"], "evaluations": n, "lr": rate}
                        arms.append(own | told(runs, str(n)))
        return {
            "dataset": self.name,
            "kind": "generation",
            "longer": self.bed.longer,
            "notes": self.bed.notes,
            "metric": self.bed.metric,
            "higher_is_better": False,
            "bases": BASES,
            "command": f"python -m benchmarks.generation --packs FOLDER --sets {self.name}",
            "seeds": seeds,
            "cpu_seconds": self.bed.cpu_seconds,
            "train": self.bed.train,
            "rates": self.bed.rates or "those of digits",
            "references": self.references(seeds),
            "arms": compared(arms, seeds, self.bed.metric),
        }

    def references(self, seeds: list[int]) -> dict[str, Any]:
        """The teacher at few and many steps; the training rows in the place of samples."""
        file = self.home / "references.json"
        if not file.exists():
            model = ring(**RING) if self.name == "ring" else limbeck.Teacher(self.base).model
            found: dict[str, Any] = {
                f"teacher, {n} steps": [
                    self.measured(model, n, seed, "test", solver="ddim", guidance=1.0) for seed in seeds
                ]
                for n in (1, 2, 4, 20, 100)
            }
            (x, label), real = rows(self.set, self.packs, "train"), rows(self.set, self.packs, "test")[0][:2048]
            n = self.bed.count
            found["training data"] = [self.figures(x[:n], real, label[:n])]
            file.write_text(json.dumps(found, indent=1))
        return json.loads(file.read_text())


def told(runs: dict[int, dict[str, Any]], n: str) -> dict[str, Any]:
    """What the seeds found, by figure."""
    good = {seed: run["figures"][n] for seed, run in runs.items() if n in run["figures"]}
    names = next(iter(good.values()), {})
    return {
        "values": {str(seed): figures for seed, figures in good.items()},
        "mean": {name: statistics.fmean(f[name] for f in good.values()) for name in names},
        "sd": {name: statistics.stdev([f[name] for f in good.values()]) for name in names} if len(good) > 1 else {},
        "steps": next(iter(runs.values()))["steps"],
        "cpu_seconds": statistics.fmean(run.get("cpu_seconds", 0.0) for run in runs.values()),
        "finished": len(good),
        "failed": [run["failed"] for run in runs.values() if "failed" in run],
    }


def compared(arms: list[dict[str, Any]], seeds: list[int], metric: str) -> list[dict[str, Any]]:
    """Each arm against `endpoints` (one step) and `consistency` (at the same number of steps), paired by seed."""
    by = {(arm["arm"], arm["evaluations"]): arm["values"] for arm in arms}
    for arm in arms:
        arm["differences"] = {}
        for base, n in zip(BASES, (1, arm["evaluations"])):
            other = by.get((base, n), {})
            pairs = [
                arm["values"][s][metric] - other[s][metric]
                for s in map(str, seeds)
                if s in arm["values"] and s in other
            ]
            if base != arm["arm"] and len(pairs) > 1 and (base != "endpoints" or arm["evaluations"] == 1):
                found = intervals.paired_t(pairs)
                arm["differences"][base] = {"seeds": {"mean": found.mean, "low": found.low, "high": found.high}}
    return arms


def main() -> None:
    given = words(__doc__, "generation", sets=some_of(BEDS))
    for name in given.sets:
        facts = Bench(name, given).all(given.seeds)
        file = given.out / f"generation-{name}.json"
        file.write_text(json.dumps(facts, indent=1) + "\n")
        print(file)


if __name__ == "__main__":
    main()
