"""log.jsonl: one line per logging step. A resumed run cuts off the lines that came after its checkpoint."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Where figures also go (Accelerate's trackers have this shape)."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Store figures of one step."""

    def finish(self) -> None:
        """Write what is still held."""


class Log:
    """Appends JSON lines; knows how far it has written.

    Args:
        path: the file, or None to keep nothing (processes other than the main one).
        trackers: also told every figure, by dotted names.
    """

    def __init__(self, path: Path | None, trackers: tuple[Tracker, ...] = ()):
        self.path, self.trackers = path, trackers
        self._file = path.open("ab") if path is not None else None

    def position(self) -> int:
        """Bytes written so far, safely on disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def rewind(self, position: int) -> None:
        """Cut off everything after `position`."""
        if self._file is not None:
            self._file.truncate(position)
            self._file.seek(position)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        if self._file is not None:
            self._file.write((json.dumps(line) + "\n").encode())
            self._file.flush()
        for tracker in self.trackers:
            figures = dict(_figures(line))
            tracker.log(figures, step=line.get("step"))

    def close(self) -> None:
        """Close the file, and let the trackers write what they still hold."""
        if self._file is not None:
            self._file.close()
        for tracker in self.trackers:
            tracker.finish()


def _figures(value: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            found += _figures(item, f"{prefix}{key}.")
        elif isinstance(item, (int, float)) and not isinstance(item, bool) and key not in ("step",):
            found.append((prefix + key, float(item)))
    return found
