"""Shards into the folder, one after another, so that a kill at any byte costs at most those under way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors.torch import save
from torch import Tensor

from limbeck.caching import form
from limbeck.caching.form import Shard
from limbeck.errors import RecipeError


class Folder:
    """A cache that is being filled.

    A shard is written aside and renamed; then a line with its checksum is appended to this process's list. A shard
    without such a line, or with other bytes than it says, is asked again. When all are there, `cache.json` is written
    with all checksums, and the lists go.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path, self.header = path, header
        self.shards = list(form.shards(header))

    def begin(self) -> list[int]:
        """Look at what is there and take it over: the numbers of the shards that are still to be asked.

        Raises:
            RecipeError: the folder holds something else, or answers to another question.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / form.FILE).exists():
            others = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            if others:
                raise RecipeError(
                    f"{self.path} is not empty and no cache (it holds {others[0]}). Choose another folder with --out."
                )
            self._write_header([])
        stored = form.read(self.path)
        different = form.differences(self.header, stored)
        if different:
            raise RecipeError(
                f"{self.path} holds the answers to another question: {'; '.join(different[:6])}. Choose another folder with --out, or change it back."
            )
        kept = self._whole(stored["shards"] if stored["complete"] else self._listed())
        if stored["complete"] and len(kept) == len(self.shards):
            return []
        lines = "".join(json.dumps(entry) + "\n" for entry in kept.values())
        form.durable(self.path / _list(0), lines.encode())  # whole lines only: a torn one would spoil the next
        self._write_header([])  # what is not complete says so
        for path in self.path.glob("asked-*.jsonl"):
            if path.name != _list(0):
                path.unlink()
        return [shard.number for shard in self.shards if shard.number not in kept]

    def end(self) -> None:
        """All shards are there: say so, with their checksums."""
        kept = self._whole(self._listed(), checksums=False)
        missing = [shard.file for shard in self.shards if shard.number not in kept]
        if missing:
            raise RuntimeError(f"{self.path}: {len(missing)} shards were not written, {missing[0]} first.")
        self._write_header([kept[shard.number] for shard in self.shards])
        self._tidy()

    def _tidy(self) -> None:
        for path in [*self.path.glob("asked-*.jsonl"), *self.path.glob(".*.writing")]:
            path.unlink()

    def _write_header(self, shards: list[dict[str, Any]]) -> None:
        complete = len(shards) == len(self.shards)
        header = self.header | {"complete": complete, "shards": shards}
        form.durable(self.path / form.FILE, (json.dumps(header, indent=1) + "\n").encode())

    def _listed(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.path.glob("asked-*.jsonl")):
            for line in path.read_text(errors="replace").splitlines():
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:  # the line that a kill cut short
                    continue
        return found

    def _whole(self, entries: Iterable[dict[str, Any]], checksums: bool = True) -> dict[int, dict[str, Any]]:
        """The shards that are as their entry says, by number."""
        files = {shard.file: shard.number for shard in self.shards}
        return {
            files[entry["file"]]: entry
            for entry in entries
            if entry["file"] in files and not form.damage(self.path, {"shards": [entry]}, checksums=checksums)
        }


class Writer:
    """Writes shards beside the asking, in a thread of its own; at most two wait, so that memory stays bounded."""

    def __init__(self, folder: Path, rank: int = 0):
        self.folder = folder
        self._list = (folder / _list(rank)).open("ab")
        self._thread = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []

    def add(self, shard: Shard, tensors: dict[str, Tensor]) -> None:
        """Write a shard soon."""
        self._soon(shard, tensors)

    def add_bytes(self, shard: Shard, content: bytes) -> None:
        """Write a shard that somebody else has put into bytes."""
        self._soon(shard, content)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for task in self._waiting:
                if kind is None:
                    task.result()
        finally:
            self._thread.shutdown()
            self._list.close()

    def _soon(self, shard: Shard, content: dict[str, Tensor] | bytes) -> None:
        while len(self._waiting) > 2:
            self._waiting.pop(0).result()
        self._waiting.append(self._thread.submit(self._write, shard, content))

    def _write(self, shard: Shard, content: dict[str, Tensor] | bytes) -> None:
        raw = content if isinstance(content, bytes) else to_bytes(content)
        form.durable(self.folder / shard.file, raw)
        entry = {
            "file": shard.file,
            "split": shard.split,
            "view": shard.view,
            "first": shard.first,
            "rows": shard.rows,
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
        self._list.write((json.dumps(entry) + "\n").encode())
        self._list.flush()
        os.fsync(self._list.fileno())


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    """A shard as it lies on disk."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _list(rank: int) -> str:
    return f"asked-{rank:03d}.jsonl"
