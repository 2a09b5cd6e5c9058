"""Checkpoints: written aside, synced and renamed, so that a kill at any moment leaves the earlier ones whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from limbeck.errors import RecipeError

KEPT = 2
_NAME = re.compile(r"step-(\d+)$")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the sentence says what happened and what is still whole."""


def save(folder: Path, position: int, state: Mapping[str, Any]) -> Path:
    """Write `state` (nested mappings and lists of tensors and plain data) as `folder/step-<position>`.

    A temporary folder is filled, synced to disk and renamed; then all but the two newest are removed. Any failure
    removes the temporary folder and leaves what was there.

    Raises:
        CheckpointError: no room, no permission, or another fault of the disk, in a sentence.
    """
    final, aside = folder / f"step-{position:06d}", folder / f".writing-{os.getpid()}-{position}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".writing-*"):
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        tensors: dict[str, Tensor] = {}
        plain = _split(state, "", tensors)
        save_file(tensors, aside / "tensors.safetensors")
        facts = {"state": plain, "bytes": (aside / "tensors.safetensors").stat().st_size}
        text = json.dumps(facts)
        (aside / "state.json").write_text(
            json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "facts": text})
        )
        for file in aside.iterdir():
            _sync(file)
        _sync(aside)
        if final.exists():  # out of the way in one move, not file by file
            final.rename(folder / f"{aside.name}-replaced")
        aside.rename(final)
        _sync(folder)
        shutil.rmtree(folder / f"{aside.name}-replaced", ignore_errors=True)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(_disk_sentence(error, folder)) from error
    except SafetensorError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint could not be written to {folder} ({error}). Earlier checkpoints are untouched."
        ) from error
    for old in list_all(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_all(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first."""
    found = (
        [(int(m.group(1)), p) for p in folder.glob("step-*") if (m := _NAME.match(p.name))] if folder.is_dir() else []
    )
    return [path for _, path in sorted(found)]


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint back.

    Raises:
        CheckpointError: a file is missing, cut short, or does not have the length and hash that were written.
    """
    try:
        outer = json.loads((path / "state.json").read_text())
        text = outer["facts"]
        if hashlib.sha256(text.encode()).hexdigest() != outer["sha256"]:
            raise CheckpointError(f"{path}/state.json was changed after it was written.")
        facts = json.loads(text)
        size = (path / "tensors.safetensors").stat().st_size
        if size != facts["bytes"]:
            raise CheckpointError(f"{path}/tensors.safetensors is cut short: {size} of {facts['bytes']} bytes.")
        tensors = load_file(path / "tensors.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}).") from error
    return _join(facts["state"], tensors)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest checkpoint that is whole, and a sentence for each damaged one that was passed over.

    Raises:
        RecipeError: there are checkpoints, and none of them is whole.
    """
    said: list[str] = []
    for path in reversed(list_all(folder)):
        try:
            return load(path), said
        except CheckpointError as error:
            said.append(f"{error} It is left aside.")
    if said:
        raise RecipeError(
            " ".join(said) + f" No whole checkpoint is left in {folder}; remove that folder to start the run anew."
        )
    return None, said


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {"$tensor": path}
    if isinstance(value, Mapping):
        if all(isinstance(k, str) for k in value):
            return {"$map": {k: _split(v, f"{path}/{k}", tensors) for k, v in value.items()}}
        return {"$items": [[k, _split(v, f"{path}/{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        if all(isinstance(v, (int, float, str, bool, type(None))) for v in value):
            return list(value)
        return {"$list": [_split(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    return value


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "$tensor" in value:
            return tensors[value["$tensor"]]
        if "$map" in value:
            return {k: _join(v, tensors) for k, v in value["$map"].items()}
        if "$items" in value:
            return {k: _join(v, tensors) for k, v in value["$items"]}
        return [_join(v, tensors) for v in value["$list"]]
    return value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Faults of a disk that a person can mend, and how.
DISK = {
    errno.ENOSPC: "the disk is full. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room",
    errno.EACCES: "it may not be written to. Give write permission",
    errno.EROFS: "it is read-only. Choose another folder with --out, or make it writable",
}


def _disk_sentence(error: OSError, folder: Path) -> str:
    reason = DISK.get(error.errno or 0, f"{error.strerror or error}. Mend that")
    return f"the checkpoint could not be written to {folder}: {reason} and go on with: limbeck resume {folder.parent}. Earlier checkpoints are untouched."
