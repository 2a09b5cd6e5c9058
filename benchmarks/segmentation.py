"""Dense outputs: one encoder-decoder teaches a narrower one on street scenes; KD, AT, channel-wise and MST-Distill.

    python benchmarks/segmentation.py --packs FOLDER [--seeds 0 1 2] [--work FOLDER]

FOLDER holds camvid_small (docs of benchmarks/packs.py). The same start weights, batches and epochs for every arm; the
methods have their published defaults. MST-Distill has one teacher of the same modality here, so two masked ones to choose
from. The figures go to benchmarks/evidence/segmentation.json; `python benchmarks/tables.py` makes the page.
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
TEACHER = {"model": "benchmarks.networks:EncoderDecoder", "args": {"width": 16}, "view": "image"}
STUDENT = {"model": "benchmarks.networks:EncoderDecoder", "args": {"width": 4}, "view": "image"}
TRAIN = {"epochs": 20, "batch_size": 16, "lr": 5e-3}
SIZE = [45, 60]
MASKED = {"teacher": ["up.1.0", "up.2.0"]}
METHODS: list[Any] = ["supervised", "kd", "at", "cwd", {"use": "mst-distill", "mask_width": 6, "masks": MASKED}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("/tmp/limbeck-segmentation"), help="where the run folders go")
    parser.add_argument("--out", type=Path, default=HERE / "evidence" / "segmentation.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    args = {"path": str((given.packs / "camvid_small").resolve()), "size": SIZE}
    data = {"path": "benchmarks.packs:camvid", "args": args}
    keys: dict[str, Any] = {"task": "segmentation", "data": data, "train": TRAIN, "control": "none"}
    started, teachers = time.monotonic(), []
    for seed in given.seeds:
        keys_of = keys | {"student": TEACHER, "method": "supervised", "seed": seed}
        teachers.append(limbeck.distill(out=given.work / f"teacher-{seed}", **keys_of))
    found = limbeck.compare(
        limbeck.Recipe(keys | {"student": STUDENT}, name="segmentation"),
        vary={
            "seed,teacher": [[seed, str(teacher.folder)] for seed, teacher in zip(given.seeds, teachers)],
            "method": METHODS,
        },
        out=given.work / "comparison",
    )
    (problem,) = json.loads((found.folder / "comparison.json").read_text())["problems"]
    told = {
        "dataset": "camvid_small",
        "command": "python benchmarks/segmentation.py --packs FOLDER",
        "notes": f"CamVid at {SIZE[0]} x {SIZE[1]} pixels, 11 classes, official split; width 16 teaches width 4",
        "train": TRAIN,
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
