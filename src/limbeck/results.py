"""What came of a run: `result.json`, every prediction, and the samples on which student and teacher differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck import __version__
from limbeck.evaluation import intervals, retention
from limbeck.evaluation.measure import Measured
from limbeck.tasks import LANGUAGE, Task

# Metrics that are means over samples, so that two models can be compared sample by sample.
_PER_SAMPLE = {
    "accuracy": lambda logits, target: logits.argmax(1).eq(target).double(),
    "mse": lambda values, target: (values.double() - target.double().reshape(values.shape)).square().flatten(1).mean(1),
    "mae": lambda values, target: (values.double() - target.double().reshape(values.shape)).abs().flatten(1).mean(1),
    # the mean over samples of nats / (mean bytes ln 2) is nats in all / (bytes in all ln 2)
    "bits_per_byte": lambda sums, size: sums[:, 0].double() / (size.double().mean() * math.log(2)),
}


def result(
    ours: Measured,
    theirs: Measured | None,
    without: Measured | None,
    task: Task,
    *,
    split: str,
    stages: Sequence[Mapping[str, Any]],
    **told: Any,
) -> dict[str, Any]:
    """What `result.json` says of the student, its teacher and its control, but for the requirements.

    Args:
        ours, theirs, without: student, teacher (if there is one) and control (if there is one), on the same rows.
        split: the name of the split they were measured on.
        stages: what was trained, a mapping with at least `steps` for each.
        told: what else the file says: name, command, seed, method, cost, notices.
    """
    up = task.higher_is_better
    own, top = ours.entry["metric"], theirs.entry["metric"] if theirs else None
    base = without.entry["metric"] if without else None
    difference = None
    if without is not None and task.metric in _PER_SAMPLE:
        a, b = (_PER_SAMPLE[task.metric](m.outputs, m.target) for m in (ours, without))
        found = intervals.paired_bootstrap(a, b)
        difference = {"what": "student - control", "how": f"paired bootstrap over {split} samples"} | {
            key: getattr(found, key) for key in ("mean", "low", "high", "level")
        }
    return {
        "limbeck": __version__,
        "status": "finished",
        "split": split,
        "samples": len(ours.target),
        "task": {"name": task.name, "metric": task.metric, "higher_is_better": up, "labels": task.labels},
        "student": ours.entry,
        "teacher": theirs.entry if theirs else None,
        "control": without.entry if without else None,
        "retention": retention.retention(own, top, higher_is_better=up),
        "gap_closed": retention.gap_closed(own, top, base, higher_is_better=up),
        "difference": difference,
        "stages": list(stages),
    } | told


def save_predictions(path: Path, task: Task, ours: Measured, theirs: Measured | None, without: Measured | None) -> None:
    """Every answer of student, teacher and control, with targets and row numbers."""
    from safetensors.torch import save_file

    named = {"student": ours, "teacher": theirs, "control": without}
    what = "outputs" if task.name in (*LANGUAGE, "generation") else "logits"
    tensors = {f"{name}.{what}": m.outputs.contiguous() for name, m in named.items() if m is not None}
    save_file(tensors | {"target": ours.target.contiguous(), "id": ours.id.contiguous()}, path)


def save_samples(path: Path, split: Any, ours: Measured, other: Measured | None, most: int = 12) -> None:
    """Some samples on which student and teacher (or control) disagree, spread over the split."""
    from safetensors.torch import save_file

    if other is None or other.outputs.shape != ours.outputs.shape or ours.outputs.dim() != 2:
        return
    apart = (ours.outputs.argmax(1) != other.outputs.argmax(1)).nonzero().flatten()
    if not len(apart):
        return
    chosen = apart[torch.linspace(0, len(apart) - 1, min(most, len(apart))).long()]
    wanted = set(ours.id[chosen].tolist())
    order = {number: position for position, number in enumerate(_row_numbers(split))}
    batch = split.__getitems__([order[number] for number in sorted(wanted)])
    shown = {
        k: v.contiguous()
        for k, v in batch.items()
        if isinstance(v, torch.Tensor) and (k == "id" or (v.is_floating_point() and v.dim() == 4))
    }
    save_file(shown, path)


def _row_numbers(split: Any) -> Iterator[int]:
    for low in range(0, len(split), 1024):
        yield from split.__getitems__(list(range(low, min(low + 1024, len(split)))))["id"].tolist()
