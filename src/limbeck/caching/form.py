"""The folder of a cache: `cache.json` says what was asked, `shard-00000.safetensors` and on hold the answers.

A shard is some rows of one split, in one view. What is in it depends on the teacher, the data and its own place alone,
and it is asked in batches of one size from its first row on: so whoever asks for it, whenever, gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RecipeError

FILE = "cache.json"
FORMAT = 1
SHARD_BYTES = 16 * 2**20  # what is lost by a kill at most, and the piece that one worker is given
SHARD_ROWS = 8192
_NOT_ASKED = ("limbeck", "complete", "shards")


@dataclass(frozen=True)
class Shard:
    """Rows `first` to `first + rows` of a split; `view`: in which random view, None for the sample as it is."""

    number: int
    split: str
    view: int | None
    first: int
    rows: int

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return f"shard-{self.number:05d}.safetensors"


def is_cache(path: Any) -> bool:
    """Whether this is the path of a cache."""
    return isinstance(path, (str, Path)) and (Path(path) / FILE).is_file()


def shards(header: dict[str, Any]) -> Iterator[Shard]:
    """Every shard of a cache, in order."""
    number = 0
    for part in header["passes"]:
        for first in range(0, part["rows"], header["rows_per_shard"]):
            rows = min(header["rows_per_shard"], part["rows"] - first)
            yield Shard(number, part["split"], part["view"], first, rows)
            number += 1


def rows_per_shard(bytes_per_row: float, batch: int) -> int:
    """How many rows a shard has: whole batches, about `SHARD_BYTES`, at most `SHARD_ROWS` (but one batch at least)."""
    rows = min(SHARD_ROWS, int(SHARD_BYTES / max(bytes_per_row, 1)))
    return max(rows // batch, 1) * batch


def read(folder: Path) -> dict[str, Any]:
    """What `cache.json` says.

    Raises:
        RecipeError: it is not there, not readable, or of a newer version.
    """
    try:
        header = json.loads((folder / FILE).read_text())
    except FileNotFoundError:
        raise RecipeError(f"{folder} is no cache: it holds no {FILE}. limbeck cache RECIPE --out {folder}") from None
    except json.JSONDecodeError as error:
        raise RecipeError(
            f"{folder / FILE} is damaged ({error}). Ask again into another folder, or put the file back."
        ) from error
    if header.get("format") != FORMAT:
        raise RecipeError(
            f"{folder} is a cache of format {header.get('format')}, written by limbeck {header.get('limbeck')}; this version reads format {FORMAT}."
        )
    return header


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Where what is asked differs from what a folder holds, a dotted key with both values each."""
    return [
        f"{key}: {_short(ours)} here, {_short(theirs)} there"
        for key, ours, theirs in _pairs(_asked(here), _asked(there), "")
    ]


def _asked(header: dict[str, Any]) -> dict[str, Any]:
    asked = {key: value for key, value in header.items() if key not in _NOT_ASKED}
    for part, where in (
        ("teacher", ("from", "weights", "tokenizer")),
        ("data", ("source",)),
    ):  # fingerprints tell, places may change
        asked[part] = {key: value for key, value in asked[part].items() if key not in where}
    return json.loads(json.dumps(asked))


def _pairs(here: Any, there: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(here, dict) and isinstance(there, dict):
        for name in dict.fromkeys([*here, *there]):
            yield from _pairs(here.get(name), there.get(name), f"{key}.{name}" if key else name)
    elif here != there:
        yield key, here, there


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def sha256(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def durable(path: Path, content: bytes) -> None:
    """Write whole or not at all, so that also a machine that loses its power leaves the old file or the new one."""
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def damage(folder: Path, header: dict[str, Any], *, checksums: bool) -> list[str]:
    """A sentence for each shard that is not as it was written; without `checksums` only presence and length are seen."""
    found = []
    for entry in header["shards"]:
        path = folder / entry["file"]
        if not path.is_file():
            found.append(f"{entry['file']} is missing.")
        elif path.stat().st_size != entry["bytes"]:
            size = path.stat().st_size
            what = "cut short" if size < entry["bytes"] else "too long"
            found.append(f"{entry['file']} is {what}: {size:,} bytes, written were {entry['bytes']:,}.")
        elif checksums and sha256(path) != entry["sha256"]:
            found.append(f"{entry['file']} holds other bytes than were written (its SHA-256 differs).")
    return found
