"""Answers that were paid for, in a file that only grows: one line of JSON each, found by the content of the question."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "answers.jsonl"


def key_of(**question: Any) -> str:
    """The SHA-256 of all that an answer depends on; the same for the same content in any order of keys."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Journal:
    """Answers by their key, on disk before anybody uses them.

    A line that a crash has torn is passed over (and counted in `torn`), and the next answer begins a line of its own, so
    no other answer is touched. Several processes may write to one file: each line is one write under a lock, and a key
    that is not known here is looked for once more in what the others have written since. Only places are held in memory.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.torn = 0
        self.usd: dict[str, float] = {}
        self._places: dict[str, tuple[int, int]] = {}
        self._read = 0
        self._lock = threading.Lock()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> dict[str, Any] | None:
        """The answer with this key; None if nobody has got one yet."""
        if key not in self._places:
            self.refresh()
        if key not in self._places:
            return None
        start, length = self._places[key]
        with self.path.open("rb") as file:
            file.seek(start)
            found: dict[str, Any] = json.loads(file.read(length))
        return found

    def add(self, answer: Mapping[str, Any]) -> None:
        """Write an answer (with its `key`) to the end of the file and to the disk; then it can be used.

        `usd` and `run`, where they are there, are added to what that run has spent.
        """
        line = json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # somebody died in the middle of a line
            while line:
                line = line[os.write(handle, line) :]
            os.fsync(handle)
        finally:
            os.close(handle)  # gives the lock back
        self.refresh()

    def refresh(self) -> None:
        """Take note of the whole lines that were written since; a last one without its end may still be under way."""
        with self._lock:
            if not self.path.exists():
                return
            with self.path.open("rb") as file:
                file.seek(self._read)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._note(line)
                    self._read += len(line)

    def absorb(self, other: Path) -> int:
        """Add the answers of another file that are not here yet; gives how many."""
        found, before = Journal(other), len(self)
        for key in found._places:
            if key not in self:
                answer = found.get(key)
                assert answer is not None
                self.add(answer)
        return len(self) - before

    def _note(self, line: bytes) -> None:
        try:
            told = json.loads(line)
            key = told["key"]
        except (ValueError, KeyError, TypeError):
            self.torn += bool(line.strip())
            return
        if key not in self._places:
            self._places[key] = (self._read, len(line))
        run = str(told.get("run"))
        self.usd[run] = self.usd.get(run, 0.0) + float(told.get("usd") or 0.0)
