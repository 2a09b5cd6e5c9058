"""Dense outputs: one encoder-decoder teaches a narrower one on street scenes; KD, AT, channel-wise and MST-Distill.

    python -m benchmarks.segmentation --packs FOLDER [--seeds 0 1 2] [--work FOLDER]

FOLDER holds camvid_small (docs of benchmarks/packs.py). The same start weights, batches and epochs for every arm; the
methods have their published defaults. MST-Distill has one teacher of the same modality here, so two masked ones to choose
from. The figures go to benchmarks/evidence/segmentation.json; `python benchmarks/tables.py` makes the page.
"""

from __future__ import annotations

from benchmarks.command_line import words
from benchmarks.one_teacher import measure

SIZE = [45, 60]
MASKED = {"teacher": ["up.1.0", "up.2.0"]}

if __name__ == "__main__":
    given = words(__doc__, "limbeck-segmentation")
    pack = str((given.packs / "camvid_small").resolve())
    measure(
        "segmentation",
        given,
        dataset="camvid_small",
        notes=f"CamVid at {SIZE[0]} x {SIZE[1]} pixels, 11 classes, official split; width 16 teaches width 4",
        task="segmentation",
        data=lambda seed: {"path": "benchmarks.packs:camvid", "args": {"path": pack, "size": SIZE}},
        teacher={"model": "benchmarks.networks:EncoderDecoder", "args": {"width": 16}, "view": "image"},
        teacher_epochs=20,
        student={"model": "benchmarks.networks:EncoderDecoder", "args": {"width": 4}, "view": "image"},
        methods=["supervised", "kd", "at", "cwd", {"use": "mst-distill", "mask_width": 6, "masks": MASKED}],
        train={"epochs": 20, "batch_size": 16, "lr": 5e-3},
    )
