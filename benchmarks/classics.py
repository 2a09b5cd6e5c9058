"""The classics on photographs: one ResNet teaches a smaller one, once with every method; three seeds.

    python -m benchmarks.classics --packs FOLDER [--seeds 0 1 2] [--work FOLDER]

FOLDER holds cifar10_12k (docs of benchmarks/packs.py). One teacher per seed, trained on the labels; every student has the
same start weights, batches, epochs and learning rate, and its method's published defaults: nothing is tuned, so this says
what one gets out of the box. The figures go to benchmarks/evidence/classics.json; `python benchmarks/tables.py` makes the page.
"""

from __future__ import annotations

from typing import Any

from benchmarks.command_line import words
from benchmarks.one_teacher import measure

LIMIT = 3000
METHODS: list[Any] = [
    *("supervised", "kd", "dkd", "dist", "logit-standardisation", "nkd", "mlkd"),
    *("fitnets", "at", "nst", "vid", "ofd", "reviewkd", "simkd", "nd", "cka", "ickd"),
    *("rkd", "sp", "pkt", {"use": "crd", "negatives": 2048}, "trg", "ofa"),
    *("function-matching", "ssld", "dml", "byot", "ps-kd", "uskd"),
    [{"use": "kd"}, {"use": "rkd"}],
    [{"use": "kd"}, {"use": "nd"}],
]

if __name__ == "__main__":
    given = words(__doc__, "limbeck-classics")
    pack = str((given.packs / "cifar10_12k").resolve())
    measure(
        "classics",
        given,
        dataset="cifar10_12k",
        notes=(
            f"{LIMIT:,} of the training images of CIFAR-10 (a tenth of them validates), 2,000 test images; a ResNet of width 12 with two "
            "blocks per stage teaches one of width 6 with one"
        ),
        task="classification",
        data=lambda seed: {"path": "benchmarks.packs:cifar10", "args": {"path": pack, "limit": LIMIT, "seed": seed}},
        teacher={"model": "benchmarks.networks:ResNet", "args": {"width": 12, "blocks": 2}, "view": "image"},
        teacher_epochs=10,
        student={"model": "benchmarks.networks:ResNet", "args": {"width": 6, "blocks": 1}, "view": "image"},
        methods=METHODS,
        train={"epochs": 6, "batch_size": 64, "lr": 3e-3},
    )
