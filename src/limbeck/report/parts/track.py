"""A log made ready for drawing: steps that run on over the stages, training apart from validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.report import numbers

Record = dict[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Track:
    """Records with their place ``x`` on one axis of steps, where each stage begins, and the last step of all."""

    training: list[Record] = field(default_factory=list)
    validation: list[Record] = field(default_factory=list)
    starts: list[tuple[float, str]] = field(default_factory=list)
    end: float = 0.0

    @classmethod
    def of(cls, log: Sequence[Record]) -> Track:
        """Read a log; a stage that counts its own steps from the beginning goes on where the one before it ended."""
        training: list[Record] = []
        validation: list[Record] = []
        starts: list[tuple[float, str]] = []
        stage, done, last = None, 0.0, 0.0
        for record in log:
            step = numbers.real(record.get("step"))
            if step is None:
                continue
            if not starts or record.get("stage") != stage:
                stage = record.get("stage")
                starts.append((last, str(stage or "")))
                done = last if step <= last else 0.0
            last = max(last, step + done)
            moved = record | {"x": step + done, "part": len(starts) - 1}
            if record.get("event") == "validation":
                validation.append(moved)
            elif isinstance(record.get("terms"), dict) and record["terms"]:
                training.append(moved)
        return cls(training, validation, starts, last)

    def ending(self, end: float) -> Track:
        """The same track moved so that it ends at this step: two budgets of one length are compared at their end."""
        by = max(0.0, end - self.end)
        training, validation = (
            [record | {"x": record["x"] + by} for record in records] for records in (self.training, self.validation)
        )
        return Track(training, validation, [(x + by, name) for x, name in self.starts], self.end + by)

    def parts(self) -> list[tuple[str, list[Record]]]:
        """Training records by stage, or all together (named "") where every stage has the same terms."""
        stages = [
            (name, [record for record in self.training if record["part"] == i])
            for i, (_, name) in enumerate(self.starts)
        ]
        trained = [(name, records) for name, records in stages if records]
        kinds = {frozenset(lines(records)) for _, records in trained}
        return trained if len(kinds) > 1 else [("", self.training)] if self.training else []

    def metric(self) -> Points:
        """The metric on validation over the steps."""
        return _known((record["x"], record.get("metric")) for record in self.validation)


def lines(records: Iterable[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records that hold each (trainee, term), in the order in which they first occur."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        for term in record["terms"]:
            found.setdefault((str(record.get("trainee") or "student"), str(term)), []).append(record)
    return found


def values(records: Sequence[Record], term: str) -> Points:
    """The value of a term over the steps."""
    return _known((record["x"], _of(record, term, "value")) for record in records)


def share_of(record: Record, term: str) -> float:
    """How much of the loss a term makes up at one step; 0 where the log does not say."""
    return max(0.0, numbers.real(_of(record, term, "share")) or 0.0)


def _of(record: Record, term: str, key: str) -> Any:
    found = record["terms"].get(term)
    return found.get(key) if isinstance(found, dict) else found if key == "value" else None


def _known(points: Iterable[tuple[float, Any]]) -> Points:
    return [(x, value) for x, raw in points if (value := numbers.real(raw)) is not None]
