"""Does it help to learn from a teacher that sees other modalities? Five arms, on three data sets, over several seeds.

    python benchmarks/cross_modal.py [--av-mnist FOLDER] [--utd-mhad FOLDER] [--only NAME] [--seeds 0 1 2 3 4] [--work FOLDER]

`av-digits` comes with the package; the others need their files (docs of limbeck.data.av_mnist and limbeck.data.utd_mhad).
Every training is a run folder under --work, so that the same command continues where it stopped. The figures go into
benchmarks/evidence/cross-modal-NAME.json, joined with what is there; `python benchmarks/tables.py` makes the page.

Every arm has the same student, start weights, batches, optimiser and epochs in which the student learns: MST-Distill has
one of them in its co-training, and the other arms get that one more. Nothing is chosen on test: students are taken as they
are after the last epoch, teachers at their least validation loss, and "the best KD" that MST-Distill is compared with is the
one with the higher validation accuracy. How the settings came about stands on the page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import limbeck
from limbeck.evaluation import intervals

HERE = Path(__file__).resolve().parent
SMALL, ACTIONS = "limbeck.models.digits", "limbeck.models.cross_modal"
ARMS = {
    "supervised": "no teacher",
    "kd-multimodal": "KD from the multimodal teacher",
    "kd-other": "KD from the other modality's teacher",
    "uniform": "uniform mixture of the specialised teachers",
    "mst-distill": "MST-Distill",
}
TEACHER = {"select": "best"}
STUDENT = {"lr": 5e-3, "select": "last"}
MST = {"use": "mst-distill", "mask_width": 6, "cotraining": {"epochs": 1}, "mask_training": {"epochs": 1}}
PUBLISHED = ["concat", "fc1"]  # where the multimodal teacher is masked; the other one at its last two layers
KDS = ("kd-multimodal", "kd-other")


@dataclass
class Case:
    """A data set, its networks and its budget."""

    data: dict[str, Any]  # arguments of the data function; "SEED" stands for the seed
    views: dict[str, list[str]]  # of each teacher
    teachers: dict[str, dict[str, Any]]
    students: dict[str, dict[str, Any]]  # by target modality
    other: dict[str, str]  # target modality -> the teacher that sees another one
    epochs: int  # after the epoch of co-training
    teacher_epochs: int
    batch_size: int = 64
    teacher_lr: float = 2e-3
    notes: str = ""


def network(address: str, **args: Any) -> dict[str, Any]:
    return {"model": address, "args": args}


CASES = {
    "av-digits": Case(
        data={"seed": "SEED"},
        views={"both": ["image", "audio"], "audio": ["audio"], "image": ["image"]},
        teachers={
            "both": network(f"{SMALL}:Fusion", width=12),
            "audio": network(f"{SMALL}:AudioCNN", width=12),
            "image": network(f"{SMALL}:ImageCNN", width=24),
        },
        students={
            "image": network(f"{SMALL}:ImageCNN", width=8),
            "audio": network(f"{SMALL}:AudioCNN", width=8),
        },
        other={"image": "audio", "audio": "image"},
        epochs=14,
        teacher_epochs=8,
        notes="2,400 / 600 / 1,200 pairs, drawn anew for each seed; a fifth of the training labels is wrong, as by default.",
    ),
    "av-mnist": Case(
        data={"seed": "SEED", "split": "official", "limit": 3500, "image_energy": 0.25},
        views={"both": ["image", "audio"], "audio": ["audio"], "image": ["image"]},
        teachers={
            "both": network(f"{ACTIONS}:AudioVisualFusion", width=4),
            "audio": network(f"{ACTIONS}:SpectrogramCNN", width=8),
            "image": network(f"{ACTIONS}:LeNet5"),
        },
        students={
            "image": network(f"{ACTIONS}:LeNet5"),
            "audio": network(f"{ACTIONS}:SpectrogramCNN", width=4),
        },
        other={"image": "audio", "audio": "image"},
        epochs=7,
        teacher_epochs=12,
        teacher_lr=5e-3,
        notes=(
            "a subset: 3,500 of the 70,000 pairs (2,500 / 500 / 500), images degraded as published (three of 784 principal "
            "components, which hold 25 % of the variance); MNIST's test file with takes 40 to 49 of the recordings is the test split, so that "
            "no recording is heard in training and in test. The seed draws the training and validation pairs."
        ),
    ),
    "utd-mhad": Case(
        data={"validation_subject": "SUBJECT"},
        views={"all": ["depth", "skeleton", "inertial"], "skeleton": ["skeleton"]},
        teachers={
            "all": network(f"{ACTIONS}:ActionFusion", width=12),
            "skeleton": network(f"{ACTIONS}:SkeletonCNN", width=16),
        },
        students={
            "inertial": network(f"{ACTIONS}:InertialCNN", width=16),
            "depth": network(f"{ACTIONS}:DepthCNN", width=16),
        },
        other={"inertial": "skeleton", "depth": "skeleton"},
        epochs=30,
        teacher_epochs=30,
        batch_size=32,
        notes=(
            "subjects 1, 3, 5, 7 train and 2, 4, 6, 8 test, as published; one training subject, the next one with each seed, is held "
            "out for validation. The multimodal teacher sees all three modalities, the other one the skeleton."
        ),
    ),
}


class Seed:
    """All runs of one seed: the teachers, then per target modality the arms."""

    def __init__(self, name: str, seed: int, work: Path, path: Path | None):
        self.name, self.case, self.seed = name, CASES[name], seed
        self.folder = work / name
        meaning = {"SEED": seed, "SUBJECT": (1, 3, 5, 7)[seed % 4]}
        args = {key: meaning.get(value, value) for key, value in self.case.data.items()}
        self.data = {"path": name, "args": args | ({"path": str(path.resolve())} if path else {})}

    def run(self, name: str, *, train: dict[str, Any], **keys: Any) -> limbeck.Run:
        """One training: a run folder, made or found."""
        started = time.monotonic()
        found = limbeck.distill(
            task="classification",
            data=self.data,
            seed=self.seed,
            train=train | {"batch_size": self.case.batch_size},
            out=self.folder / f"{name}-{self.seed}",
            command="python benchmarks/cross_modal.py",
            **keys,
        )
        result = found.result
        print(
            f"{self.name} seed {self.seed} {name}: {result['student']['metric']:.4f} ({time.monotonic() - started:.0f} s)"
        )
        return found

    def teachers(self) -> dict[str, limbeck.Run]:
        """Trained on the labels, each with its view."""
        return {
            name: self.run(
                f"teacher-{name}",
                train=TEACHER | {"lr": self.case.teacher_lr, "epochs": self.case.teacher_epochs},
                student=spec | {"view": self.case.views[name]},
                method="supervised",
                control="none",
            )
            for name, spec in self.case.teachers.items()
        }

    def arms(self, target: str, teachers: dict[str, limbeck.Run]) -> dict[str, dict[str, Any]]:
        """Per arm what is known of it."""
        case, multimodal, other = self.case, next(iter(self.case.teachers)), self.case.other[target]
        student = case.students[target] | {"view": target}
        folders = {name: str(teachers[name].folder) for name in (multimodal, other)}
        runs = {
            arm: self.run(
                f"{target}-{arm}",
                train=STUDENT | {"epochs": case.epochs + 1},
                student=student,
                teacher=folders[name],
                method="kd",
                control="train",  # trained by the first of the two, found by its fingerprint by the second
            )
            for arm, name in (("kd-multimodal", multimodal), ("kd-other", other))
        }
        alone = runs["kd-multimodal"].folder / "control"
        mst = MST | {"masks": {multimodal: PUBLISHED}}
        for arm, method in (("uniform", mst | {"k": 4, "balance_weight": 0.0}), ("mst-distill", mst)):
            runs[arm] = self.run(
                f"{target}-{arm}",
                train=STUDENT | {"epochs": case.epochs},
                student=student,
                teacher={"members": {name: {"model": folder} for name, folder in folders.items()}},
                method=method,
                control=str(alone / "student"),
            )
        found = {arm: entry(run.result["student"], run.result["stages"]) for arm, run in runs.items()}
        control = runs["kd-multimodal"].result["control"]
        return {"supervised": entry(control, json.loads((alone / "stages.json").read_text()))} | found


def entry(measured: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one student."""
    learning = [stage for stage in stages if stage["method"] != "mst-masks"]
    return {
        "test": measured["metric"],
        "validation": stages[-1]["validation_metric"],
        "student_epochs": sum(stage["epochs"] for stage in learning),
        "student_steps": sum(stage["steps"] for stage in learning),
        "selected_epoch": stages[-1]["selected_epoch"],
        "seconds": round(sum(stage["seconds"] for stage in stages), 2),
    }


def measure(name: str, seed: int, work: Path, path: Path | None) -> dict[str, Any]:
    """Everything about one seed."""
    of = Seed(name, seed, work, path)
    teachers = of.teachers()
    facts = json.loads((teachers[next(iter(teachers))].folder / "environment.json").read_text())
    return {
        "seed": seed,
        "data_fingerprint": facts["data_fingerprint"],
        "versions": {"limbeck": limbeck.__version__}
        | {key: facts[key] for key in ("python", "torch", "numpy", "processor", "threads")},
        "teachers": {key: entry(run.result["student"], run.result["stages"]) for key, run in teachers.items()},
        "targets": {target: of.arms(target, teachers) for target in of.case.students},
    }


def settings(name: str) -> dict[str, Any]:
    """All that makes figures comparable; figures of other settings are not joined."""
    case = CASES[name]
    return {
        "data": {"path": name} | case.data,
        "teachers": {key: spec | {"view": case.views[key]} for key, spec in case.teachers.items()},
        "students": {key: spec | {"view": key} for key, spec in case.students.items()},
        "other_teacher": case.other,
        "train": {"batch_size": case.batch_size, "teacher": TEACHER | {"lr": case.teacher_lr}, "student": STUDENT},
        "epochs": {"student": case.epochs + 1, "teacher": case.teacher_epochs},
        "mst-distill": MST | {"masks of the multimodal teacher": PUBLISHED},
    }


def join(file: Path, name: str, fresh: list[dict[str, Any]], command: str) -> dict[str, Any]:
    """The seeds of the file with these put over them, and what follows from all of them.

    Raises:
        SystemExit: the file holds figures of other settings.
    """
    told = settings(name)
    seeds: dict[int, dict[str, Any]] = {}
    if file.exists():
        stored = json.loads(file.read_text())
        if stored["settings"] != told:
            raise SystemExit(f"{file} holds figures of other settings; move it away, or give another --out.")
        seeds = {one["seed"]: one for one in stored["seeds"]}
    seeds |= {one["seed"]: one for one in fresh}
    ordered = [seeds[seed] for seed in sorted(seeds)]
    return {
        "dataset": name,
        "metric": "accuracy",
        "notes": CASES[name].notes,
        "command": f"{command} --seeds {' '.join(str(one['seed']) for one in ordered)}",
        "arms": ARMS,
        "settings": told,
        "summary": {target: summary(target, ordered) for target in CASES[name].students},
        "teachers": {key: spread([one["teachers"][key]["test"] for one in ordered]) for key in CASES[name].teachers},
        "seconds": round(sum(seconds(one) for one in ordered), 1),
        "seeds": ordered,
    }


def seconds(one: dict[str, Any]) -> float:
    arms = [arm["seconds"] for target in one["targets"].values() for arm in target.values()]
    return sum(arms) + sum(teacher["seconds"] for teacher in one["teachers"].values())


def summary(target: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread per arm, and the paired differences (accuracy is better when higher)."""
    test, validation = (
        {arm: [one["targets"][target][arm][split] for one in seeds] for arm in ARMS} for split in ("test", "validation")
    )
    best = max(KDS, key=lambda arm: statistics.fmean(validation[arm]))
    pairs = [(arm, "supervised") for arm in ARMS if arm != "supervised"]
    pairs += [("mst-distill", best), ("mst-distill", "uniform")]
    return {
        "arms": {
            arm: spread(test[arm])
            | {
                "validation": spread(validation[arm]),
                "seconds": round(statistics.median(one["targets"][target][arm]["seconds"] for one in seeds), 2),
                "student_epochs": seeds[0]["targets"][target][arm]["student_epochs"],
            }
            for arm in ARMS
        },
        "best_kd_on_validation": best,
        "differences": [
            {"arm": a, "than": b} | intervals.paired_t([x - y for x, y in zip(test[a], test[b])]).to_dict(f"{a} - {b}")
            for a, b in pairs
        ],
    }


def spread(values: list[float]) -> dict[str, Any]:
    return {
        "values": values,
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--av-mnist", type=Path, metavar="FOLDER", help="mnist.npz and fsdd.npz, or the original files")
    parser.add_argument("--utd-mhad", type=Path, metavar="FOLDER", help="labels.npz and the arrays of the modalities")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("/tmp/limbeck-evidence"), help="where the run folders go")
    parser.add_argument("--out", type=Path, default=HERE / "evidence")
    given = parser.parse_args()
    torch.set_num_threads(1)  # networks so small that a second thread costs more than it saves
    paths = {"av-digits": None, "av-mnist": given.av_mnist, "utd-mhad": given.utd_mhad}
    for name in given.only:
        if name != "av-digits" and paths[name] is None:
            print(f"{name}: left out, its files were not given (--{name} FOLDER)")
            continue
        option = "" if paths[name] is None else f" --{name} FOLDER"
        command = f"python benchmarks/cross_modal.py{option} --only {name}"
        file = given.out / f"cross-modal-{name}.json"
        for seed in given.seeds:  # written after every seed: a stop loses nothing
            found = join(file, name, [measure(name, seed, given.work, paths[name])], command)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{file}: {len(found['seeds'])} seeds, {found['seconds']:.0f} s of training")


if __name__ == "__main__":
    main()
