"""What a run left behind, read for showing: whatever is there, and nothing is needed but ``result.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.evaluation.samples import FILE, Generated

ROLES = ("teacher", "student", "control")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, already read. Missing files are empty; a missing part of the result is None."""

    path: Path
    result: dict[str, Any]
    log: list[dict[str, Any]]
    control_log: list[dict[str, Any]]
    predictions: dict[str, Tensor]
    samples: dict[str, Tensor]
    generated: Generated
    findings: list[dict[str, Any]]
    recipe: str
    environment: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Read a run folder.

        Raises:
            RecipeError: there is no readable ``result.json``, so this is no run folder, or not yet.
        """
        result = _json(path / "result.json", None)
        if not isinstance(result, dict):
            raise RecipeError(
                f"{path} has no result.json that can be read, so there is nothing to report. "
                f"Give the folder of a run that has finished (limbeck distill writes one)."
            )
        findings, environment = _json(path / "findings.json", []), _json(path / "environment.json", {})
        return cls(
            path=path,
            result=result,
            log=_lines(path / "log.jsonl"),
            control_log=_lines(path / "control" / "log.jsonl"),
            predictions=_tensors(path / "predictions.safetensors"),
            samples=_tensors(path / "samples.safetensors"),
            generated=Generated.load(path / FILE),
            findings=[block for block in findings if isinstance(block, dict)] if isinstance(findings, list) else [],
            recipe=_text(path / "recipe.yaml"),
            environment=environment if isinstance(environment, dict) else {},
        )

    @property
    def name(self) -> str:
        return str(self.result.get("name") or self.path.name)

    @property
    def task(self) -> dict[str, Any]:
        return self.result.get("task") or {}

    @property
    def metric(self) -> str:
        return str(self.task.get("metric") or "metric")

    @property
    def higher_is_better(self) -> bool:
        return bool(self.task.get("higher_is_better", True))

    @property
    def classifies(self) -> bool:
        """Whether a sample has one class, which confusion, disagreement and calibration are about; true where the task is not told."""
        return self.task.get("name", "classification") == "classification"

    @property
    def roles(self) -> dict[str, dict[str, Any]]:
        """The models this run measured, in the order teacher, student, control."""
        return {role: self.result[role] for role in ROLES if isinstance(self.result.get(role), dict)}

    def logits(self, role: str) -> Tensor | None:
        """[samples, classes] of a role, where the targets are one class per sample and fit; otherwise None."""
        logits, target = self.predictions.get(f"{role}.logits"), self.predictions.get("target")
        if logits is None or target is None or logits.dim() != 2 or target.dim() != 1 or target.is_floating_point():
            return None
        if not len(target) or len(logits) != len(target) or target.min() < 0 or target.max() >= logits.shape[1]:
            return None
        return logits.double()

    def labels(self, classes: int) -> list[str]:
        """Names of the classes; their numbers where the result has no names, or not as many."""
        names = self.task.get("labels")
        fits = isinstance(names, Sequence) and len(names) == classes
        return [str(name) for name in names] if fits and names else [str(number) for number in range(classes)]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path, missing: Any) -> Any:
    try:
        return json.loads(_text(path) or "null") or missing
    except json.JSONDecodeError:
        return missing


def _lines(path: Path) -> list[dict[str, Any]]:
    """Records of a log; a run that was killed may leave half a line, which is left out."""
    records = []
    for line in _text(path).splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.to(torch.device("cpu")) for name, tensor in load_file(path).items()} if path.is_file() else {}
