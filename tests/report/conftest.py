"""Synthetic run folders, with the files of the contract and as few of them as a test wants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from limbeck.evaluation import calibration, fidelity, quality

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run folder; ``without`` names files and roles to leave out, ``change`` edits the result."""

    def make(
        name: str = "digits-1",
        *,
        labels: list[str] | None = None,
        classes: int = 4,
        samples: int = 80,
        seed: int = 0,
        steps: int = 60,
        image: tuple[int, ...] = (1, 8, 8),
        columns: tuple[str, str] = ("image", "audio"),
        terms: tuple[str, ...] = ("task", "kl"),
        without: tuple[str, ...] = (),
        change: Callable[[dict[str, Any]], None] | None = None,
    ) -> Path:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        (folder / "control").mkdir(parents=True)
        generator = torch.Generator().manual_seed(seed)
        target = torch.randint(classes, (samples,), generator=generator)
        roles = [role for role in ("student", "teacher", "control") if role not in without]
        strength = {"student": 2.0, "teacher": 3.5, "control": 1.6}
        logits = {
            role: torch.randn(samples, classes, generator=generator)
            + strength[role] * torch.nn.functional.one_hot(target, classes)
            for role in roles
        }
        result = _result(name, roles, logits, target, labels or [str(i) for i in range(classes)], columns)
        if change is not None:
            change(result)
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "recipe.yaml").write_text("# limbeck 0.1.0\ntask: classification   # the task\nmethod: kd\n")
        (folder / "environment.json").write_text(json.dumps({"python": "3.11", "torch": "2.13.0"}))
        (folder / "findings.json").write_text(json.dumps(_findings()))
        (folder / "log.jsonl").write_text(_log(steps, terms, "distil"))
        (folder / "control" / "log.jsonl").write_text(_log(steps, ("task",), "control"))
        ids = torch.arange(1000, 1000 + samples)
        tensors = {f"{role}.logits": values for role, values in logits.items()} | {"target": target, "id": ids}
        save_file(tensors, folder / "predictions.safetensors")
        kept = ids[:12].clone()
        if len(logits) == 3:
            kept = ids[logits["student"].argmax(1) != logits["teacher"].argmax(1)][:12].clone()
        shots = torch.rand(len(kept), *image, generator=generator)
        sounds = 6 * torch.randn(len(kept), 1, 16, 20, generator=generator) - 5
        save_file({"id": kept, columns[0]: shots, columns[1]: sounds}, folder / "samples.safetensors")
        for file in without:
            if (folder / file).is_file():
                (folder / file).unlink()
        return folder

    return make


def _result(
    name: str,
    roles: list[str],
    logits: dict[str, torch.Tensor],
    target: torch.Tensor,
    labels: list[str],
    columns: tuple[str, str],
) -> dict[str, Any]:
    models = {}
    for role in ("student", "teacher", "control"):
        models[role] = None
        if role in roles:
            figures = quality.figures("classification", logits[role], target) | {"ece": 0.05}
            if role == "student" and "teacher" in roles:
                figures |= fidelity.figures(logits[role], logits["teacher"])
            figures["brier"] = calibration.brier(logits[role], target)
            models[role] = {
                "name": "Fusion" if role == "teacher" else "LeNet5",
                "view": list(columns) if role == "teacher" else [columns[0]],
                "metric": figures["accuracy"],
                "parameters": 900_000 if role == "teacher" else 61_706,
                "bytes": 3_600_000 if role == "teacher" else 246_824,
                "latency_ms": 2.5 if role == "teacher" else 0.61,
                "figures": figures,
            }
    whole = "teacher" in roles and "control" in roles
    return {
        "limbeck": "0.1.0", "status": "finished", "name": name, "command": f"limbeck distill {name}.yaml seed=0",
        "split": "test", "samples": len(target), "seed": 0,
        "task": {"name": "classification", "metric": "accuracy", "higher_is_better": True, "labels": labels},
        "method": "kd", **models,
        "retention": 0.91 if "teacher" in roles else None, "gap_closed": 0.42 if whole else None,
        "difference": {"what": "student - control", "mean": 0.021, "low": 0.003, "high": 0.04, "level": 0.95,
                       "how": "paired bootstrap over test samples"} if whole else None,
        "require": [{"text": "retention >= 0.97", "value": 0.91, "held": False}],
        "cost": {"seconds": 31.2, "steps": 60, "samples": 3840},
        "stages": [{"name": "distil", "method": "kd", "epochs": 3, "steps": 60, "seconds": 30.1, "selected_epoch": 1}],
        "notices": ["The student never hears the recordings."],
    }  # fmt: skip


def _findings() -> list[dict[str, Any]]:
    return [
        {"kind": "heatmap", "title": "Routes", "text": "Which layer learns.", "rows": ["a", "b"], "columns": ["x", "y"],
         "values": [[0.25, 0.75], [1.0, 0.0]], "unit": "share"},
        {"kind": "bars", "title": "Kept", "text": "", "rows": ["a", "b"], "columns": ["kept"], "values": [[0.5], [-0.2]]},
        {"kind": "table", "title": "Tried", "text": "", "rows": ["1", "2"], "columns": ["kl"], "values": [[0.4], [None]]},
    ]  # fmt: skip


def _log(steps: int, terms: tuple[str, ...], stage: str) -> str:
    lines = []
    for step in range(1, steps + 1):
        values = {
            term: {"value": 2.0 / (i + 1) / math.sqrt(step), "share": 1 / len(terms)} for i, term in enumerate(terms)
        }
        lines.append({"step": step, "epoch": step // 20, "stage": stage, "trainee": "student", "terms": values})
        if step % 20 == 0:
            record = {"event": "validation", "step": step, "epoch": step // 20 - 1, "stage": stage, "loss": 0.9}
            lines.append(record | {"metric": 1 - 1 / math.sqrt(step)})
    return "".join(json.dumps(line) + "\n" for line in lines)
