"""The classics on photographs: one ResNet teaches a smaller one, once with every method; three seeds.

    python benchmarks/classics.py --packs FOLDER [--seeds 0 1 2] [--only METHOD ...] [--work FOLDER]

FOLDER holds cifar10_12k (docs of benchmarks/packs.py). One teacher per seed, trained on the labels; every student has the
same start weights, batches, epochs and learning rate, and its method's published defaults: nothing is tuned, so this says
what one gets out of the box. The figures go to benchmarks/evidence/classics.json; `python benchmarks/tables.py` makes the page.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import limbeck

HERE = Path(__file__).resolve().parent
TEACHER = {"model": "benchmarks.networks:ResNet", "args": {"width": 12, "blocks": 2}, "view": "image"}
STUDENT = {"model": "benchmarks.networks:ResNet", "args": {"width": 6, "blocks": 1}, "view": "image"}
LIMIT = 3000
TRAIN = {"epochs": 6, "batch_size": 64, "lr": 3e-3}
TEACHER_EPOCHS = 10
METHODS: list[Any] = [
    "supervised",
    "kd",
    "dkd",
    "dist",
    "logit-standardisation",
    "nkd",
    "mlkd",
    "fitnets",
    "at",
    "nst",
    "vid",
    "ofd",
    "reviewkd",
    "simkd",
    "nd",
    "cka",
    "ickd",
    "rkd",
    "sp",
    "pkt",
    "crd",
    "trg",
    "ofa",
    "dml",
    "byot",
    "ps-kd",
    "uskd",
    [{"use": "kd"}, {"use": "rkd"}],
    [{"use": "kd"}, {"use": "at"}],
]


def data(packs: Path, seed: int) -> dict[str, Any]:
    args = {"path": str((packs / "cifar10_12k").resolve()), "limit": LIMIT, "seed": seed}
    return {"path": "benchmarks.packs:cifar10", "args": args}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="these methods, and supervised and kd")
    parser.add_argument("--work", type=Path, default=Path("/tmp/limbeck-classics"), help="where the run folders go")
    parser.add_argument("--out", type=Path, default=HERE / "evidence" / "classics.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    methods = [m for m in METHODS if not given.only or m in (*given.only, "supervised", "kd")]
    started, teachers = time.monotonic(), []
    for seed in given.seeds:
        teachers.append(
            limbeck.distill(
                task="classification",
                data=data(given.packs, seed),
                student=TEACHER,
                method="supervised",
                train=TRAIN | {"epochs": TEACHER_EPOCHS},
                control="none",
                seed=seed,
                out=given.work / f"teacher-{seed}",
            )
        )
    keys = {
        "task": "classification",
        "data": data(given.packs, 0),
        "student": STUDENT,
        "train": TRAIN,
        "control": "none",
    }
    drawn = [[seed, seed, str(teacher.folder)] for seed, teacher in zip(given.seeds, teachers)]
    found = limbeck.compare(
        limbeck.Recipe(keys, name="classics"),
        vary={"seed,data.args.seed,teacher": drawn, "method": methods},
        out=given.work / "comparison",
    )
    (problem,) = json.loads((found.folder / "comparison.json").read_text())["problems"]
    told = {
        "dataset": "cifar10_12k",
        "command": "python benchmarks/classics.py --packs FOLDER",
        "notes": f"{LIMIT:,} of the training images of CIFAR-10 (a tenth of them validates), 2,000 test images, ResNet of width 12 to one of width 6",
        "train": TRAIN,
        "teacher_epochs": TEACHER_EPOCHS,
        "seeds": given.seeds,
        "teachers": [teacher.result["student"]["metric"] for teacher in teachers],
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    shown = {key: problem[key] for key in ("metric", "split", "samples", "arms")}
    given.out.write_text(json.dumps(told | shown, indent=1) + "\n")
    print(given.out)


if __name__ == "__main__":
    main()
