"""A log made ready for drawing: steps that run on over the stages, training apart from validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.report import numbers

Record = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Track:
    """Records with their place ``x`` on one axis of steps, and where each stage begins (if there is more than one)."""

    training: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    starts: list[tuple[float, str]] = field(default_factory=list)

    @classmethod
    def of(cls, log: Sequence[Record]) -> Track:
        """Read a log; a stage that counts its own steps from one goes on where the one before it ended."""
        track, stage, done, last = cls(), None, 0.0, 0.0
        for record in log:
            step = numbers.real(record.get("step"))
            if step is None:
                continue
            if record.get("stage") != stage:
                stage = record.get("stage")
                track.starts.append((last, str(stage or "")))
                done = last if step <= last else 0.0
            last = max(last, step + done)
            moved = record | {"x": step + done}
            if record.get("event") == "validation":
                track.validation.append(moved)
            elif isinstance(record.get("terms"), dict):
                track.training.append(moved)
        return cls(track.training, track.validation, track.starts if len(track.starts) > 1 else [])

    def trainees(self) -> dict[str, list[Record]]:
        """Training records by who learned."""
        found: dict[str, list[Record]] = {}
        for record in self.training:
            found.setdefault(str(record.get("trainee") or "student"), []).append(record)
        return found

    def metric(self) -> Points:
        """The metric on validation over the steps."""
        return _known((record["x"], record.get("metric")) for record in self.validation)


def term(records: Sequence[Record], name: str) -> Points:
    """The value of a term over the steps."""
    return _known((record["x"], _of(record, name, "value")) for record in records)


def share_of(record: Record, name: str) -> float:
    """How much of the loss a term makes up at one step; 0 where the log does not say."""
    return max(0.0, numbers.real(_of(record, name, "share")) or 0.0)


def _of(record: Record, name: str, key: str) -> Any:
    found = record["terms"].get(name)
    return found.get(key) if isinstance(found, dict) else found if key == "value" else None


def _known(points: Any) -> Points:
    return [(x, value) for x, raw in points if (value := numbers.real(raw)) is not None]
