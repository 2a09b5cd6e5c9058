"""What four methods promise beyond few steps, on 8x8 digits: DMM merges teachers, PSO follows a reward, diversity, DDAE++ learns features.

    python -m benchmarks.generation_further --packs FOLDER [--seeds 0 1 2] [--work FOLDER]

After benchmarks.generation of the sets digits and digits-longer, in the same work folder, whose teacher, judge, learning rates and numbers of
steps it goes on with. DMM: three teachers are fine-tuned on inverted, bold and slanted digits; one student is to be each of them, measured by the Frechet
distance of its samples to that teacher's (not to data). PSO: a student of four steps is to draw bolder, the reward being the mean ink.
Diversity: the same student with the teacher for its first steps. DDAE++: training from nothing with and without self-conditioning
and contrastive self-distillation. The figures go to benchmarks/evidence/generation-further.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.command_line import words
from benchmarks.generation import BEDS, Bench, data, rows
from torch import Tensor
from torch.nn import functional as F

import limbeck
from limbeck.data.tensors import Data, TensorSplit
from limbeck.evaluation import generation, intervals

HERE = Path(__file__).resolve().parent
STYLES: dict[str, Callable[[Tensor], Tensor]] = {
    "inverted": lambda x: -x,
    "bold": lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-1.0), 2, stride=1),
    "slanted": lambda x: torch.stack([x[:, :, i].roll(i // 3 - 1, -1) for i in range(x.shape[2])], 2),
}
TUNED, MERGED, REWARDED, FEATURED = 500, 800, 150, 600
LAYERS, TIMES = ("inner.0", "inner.1", "up"), (0.05, 0.2, 0.4)
ARMS_OF_FEATURES: dict[str, dict[str, Any]] = {
    "augmented denoising": {"use": "ddae", "contrastive": 0.0, "self_condition": False},
    "self-conditioned": {"use": "ddae", "contrastive": 0.0},
    "contrastive": {"use": "ddae", "self_condition": False},
    "both": {"use": "ddae"},
}


def ink(x: Tensor, batch: Any = None) -> Tensor:
    """How much is drawn: the mean of the pixels, -1 to 1, per picture."""
    return x.flatten(1).mean(1)


def styled(style: str, packs: str) -> Data:
    made = data("digits", packs)
    splits = {part: changed(split, image=STYLES[style]) for part, split in made.splits.items()}
    return Data(splits, made.columns, made.labels, source=style)


def changed(split: Any, **how: Callable[[Tensor], Tensor]) -> TensorSplit:
    """The split with some columns made anew."""
    tensors = {name: how.get(name, lambda v: v)(values) for name, values in split.tensors.items() if name != "id"}
    return TensorSplit(tensors, int(split.tensors["id"][0]))


class Further:
    """The digits' bench, and what is asked of it beyond few steps."""

    def __init__(self, given: argparse.Namespace):
        self.bench, self.longer = Bench("digits", given), Bench("digits-longer", given)
        self.packs, self.folder = str(given.packs), self.bench.folder / "further"
        self.keys = self.bench.keys
        self.train = BEDS["digits"].train

    def distilled(self, name: str, **keys: Any) -> str:
        """A run's folder; one that is done is not done again."""
        steps, rate = keys.pop("steps"), keys.pop("lr", 2e-4)
        train = self.train | {"steps": steps, "lr": rate} | keys.pop("train", {})
        return str(limbeck.distill(**self.keys | keys, train=train, out=self.folder / name).folder)

    @torch.no_grad()
    def drawn(self, model: Any, seed: int, weights: Sequence[float] | None = None, **sampling: Any) -> Tensor:
        """Samples of the training rows' classes; `weights`: of the styles that it speaks as."""
        if weights is not None:
            model.styles.usual.copy_(torch.tensor(weights))
        return self.bench.samples(model, seed, **sampling)

    def features(self, x: Tensor) -> Tensor:
        assert self.bench.judge is not None
        with torch.no_grad():
            return self.bench.judge(x)["embedding"]

    def merging(self, seeds: Sequence[int]) -> dict[str, Any]:
        """The Frechet distance to each teacher's samples, of DMM, of the mean of the weights, of the teacher itself with other noise."""
        keys: dict[str, Any] = {"student": self.bench.base, "method": {"use": "denoising"}, "seed": 0}
        teachers = {
            style: self.distilled(f"teacher-{style}", **keys, data=lambda s=style: styled(s, self.packs), steps=TUNED)
            for style in STYLES
        }
        models = {style: limbeck.Student(folder).model for style, folder in teachers.items()}
        real = {style: self.features(self.drawn(model, 1000)) for style, model in models.items()}
        mean = limbeck.Student(self.bench.base).model
        states = [model.state_dict() for model in models.values()]
        mean.load_state_dict({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})
        found: dict[str, list[float]] = {"mean of the weights": [], "dmm": [], "each teacher itself": []}
        for seed in seeds:
            member = {style: {"model": folder} for style, folder in teachers.items()}
            folder = self.distilled(
                f"dmm-{seed}",
                teacher={"members": member},
                student=self.bench.base,
                method="dmm",
                steps=MERGED,
                seed=seed,
            )
            student = limbeck.Student(folder).model
            apart: dict[str, list[float]] = {name: [] for name in found}
            for k, (style, model) in enumerate(models.items()):
                one = [float(i == k) for i in range(len(models))]
                for name, x in {
                    "mean of the weights": self.drawn(mean, seed),
                    "dmm": self.drawn(student, seed, weights=one),
                    "each teacher itself": self.drawn(model, seed),
                }.items():
                    apart[name].append(generation.frechet(self.features(x), real[style]))
            for name, values in apart.items():
                found[name].append(statistics.fmean(values))
        return {"steps": MERGED, "frechet": found, "against": told(found, "mean of the weights")}

    def rewarded(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Ink and Frechet distance of four-step samples before and after PSO, and after denoising the boldest third of the data."""
        found: dict[str, dict[str, list[float]]] = {}
        real = self.features(rows("digits", self.packs, "test")[0])
        for seed in seeds:
            four = self.four(seed)
            keys: dict[str, Any] = {"student": four, "seed": seed, "steps": REWARDED}
            reward = {"use": "pso", "sampling_steps": 4, "reward": "benchmarks.generation_further:ink"}
            arms = {
                "the student of four steps": four,
                "pso": self.distilled(f"pso-{seed}", **keys, teacher=four, method=reward, lr=5e-5),
                "denoising of the boldest": self.distilled(
                    f"boldest-{seed}",
                    **keys,
                    data=self.boldest,
                    method={"use": "denoising", "sampling_steps": 4, "solver": "renoise"},
                    lr=5e-5,
                ),
            }
            for name, folder in arms.items():
                x = self.drawn(limbeck.Student(folder).model, seed)
                figures = {"ink": float(ink(x).mean()), "frechet": generation.frechet(self.features(x), real)}
                for figure, value in figures.items():
                    found.setdefault(figure, {}).setdefault(name, []).append(value)
        base = "the student of four steps"
        return {"steps": REWARDED, **found, "against": {figure: told(values, base) for figure, values in found.items()}}

    def boldest(self) -> Data:
        made = data("digits", self.packs)
        split: Any = made.splits["train"]
        most = ink(split.tensors["image"]).argsort(descending=True)[: len(split) // 3]
        few = changed(split, **dict.fromkeys(("image", "label"), lambda values: values[most]))
        splits = dict(made.splits) | {"train": few}
        return Data(splits, made.columns, made.labels, source="boldest")

    def four(self, seed: int) -> str:
        """A student of four steps by DMD2, with the rate and the time of digits-longer: within that of digits it does not settle."""
        rate = json.loads((self.longer.folder / "rates.json").read_text())["dmd2"]["4"]
        return self.distilled(
            f"four-{seed}",
            teacher=self.bench.teacher,
            student=self.bench.base,
            method={"use": "dmd2", "sampling_steps": 4},
            steps=self.longer.steps("dmd2", 4),
            lr=rate,
            seed=seed,
        )

    def begun(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Figures of the four-step student whose first 0 to 4 steps the teacher takes."""
        found: dict[str, dict[str, list[float]]] = {}
        for seed in seeds:
            for switch in range(5):
                folder = self.distilled(
                    f"begun-{seed}-{switch}",
                    teacher=self.bench.teacher,
                    student=self.four(seed),
                    method={"use": "diversity", "switch": switch, "base_guidance": 1.0},
                    steps=1,
                    seed=seed,
                )
                x = self.drawn(limbeck.Student(folder).model, seed)
                label = rows("digits", self.packs, "train")[1][: len(x)]
                figures = self.bench.figures(x, rows("digits", self.packs, "test")[0], label)
                for name in ("frechet", "recall", "diversity", "conditional_accuracy"):
                    found.setdefault(name, {}).setdefault(str(switch), []).append(figures[name])
        return {**found, "against": {name: told(values, "0") for name, values in found.items()}}

    def featured(self, seeds: Sequence[int], steps: int) -> dict[str, Any]:
        """Frechet distance and accuracy of a linear probe of networks trained from nothing, without classes, by DDAE++ and its parts."""
        from limbeck.evaluation.probe import probe

        student = BEDS["digits"].student
        student = student | {"args": {k: v for k, v in student["args"].items() if k != "classes"}}
        found: dict[str, dict[str, list[float]]] = {}
        (x, label), (held, of) = rows("digits", self.packs, "train"), rows("digits", self.packs, "test")
        parts = {"train": (x[:-300], label[:-300]), "validation": (x[-300:], label[-300:]), "test": (held, of)}
        places = dict(zip(parts, (0, len(x) - 300, len(x))))
        splits = {part: TensorSplit({"image": v, "label": c}, places[part]) for part, (v, c) in parts.items()}
        known = Data(splits, {"image": "", "label": ""}, {"label": [str(c) for c in range(10)]}, source="digits")
        for seed in seeds:
            for name, method in ARMS_OF_FEATURES.items():
                place = f"featured-{name.replace(' ', '-')}-{seed}"
                folder = self.distilled(place, student=student, method=method, steps=steps, seed=seed, lr=1e-3)
                model = limbeck.Student(folder).model
                generated = self.features(self.drawn(model, seed, steps=20, solver="heun"))
                figures = {
                    "frechet": generation.frechet(generated, self.features(held)),
                    "probe": probe(model, known, LAYERS, TIMES)["test"],
                }
                for figure, value in figures.items():
                    found.setdefault(figure, {}).setdefault(name, []).append(value)
        base = "augmented denoising"
        return {"steps": steps, **found, "against": {figure: told(v, base) for figure, v in found.items()}}


def told(found: dict[str, list[float]], base: str) -> dict[str, Any]:
    """Every arm minus the base, paired by seed."""
    result = {}
    for name, values in found.items():
        if name != base and len(values) > 1:
            d = intervals.paired_t([a - b for a, b in zip(values, found[base])])
            result[name] = {"mean": d.mean, "low": d.low, "high": d.high}
    return result


def main() -> None:
    given = words(__doc__, "generation")
    further, file = Further(given), given.out / "generation-further.json"
    facts: dict[str, Any] = {
        "dataset": "generation-further",
        "command": "python -m benchmarks.generation_further --packs FOLDER",
        "seeds": given.seeds,
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "merging": lambda: further.merging(given.seeds),
        "rewarded": lambda: further.rewarded(given.seeds),
        "begun": lambda: further.begun(given.seeds),
        "featured": lambda: further.featured(given.seeds, FEATURED),
    }
    for name, part in parts.items():  # written after each, so that a stop loses none
        facts[name] = part()
        file.write_text(json.dumps(facts, indent=1) + "\n")
        print(file, name)


if __name__ == "__main__":
    main()
