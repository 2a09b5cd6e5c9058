"""Rows of tokens of any length: in memory while they are few, else in files that are mapped into memory."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import RecipeError

BUDGET = 2**28  # bytes of tokens kept in memory
_FACTS = "store.json"
_ENDS = "ends-"


def cache_folder() -> Path:
    """Where files go that may be thrown away: `$LIMBECK_CACHE`, else `~/.cache/limbeck`."""
    return Path(os.environ.get("LIMBECK_CACHE", Path.home() / ".cache" / "limbeck"))


class Store:
    """Rows with the same named arrays, each of its own length: `store["ids", 3]` are the ids of row 3.

    Mapped files are opened anew in every process: what is sent to a worker is the folder's name.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        ends: Mapping[str, np.ndarray],
        folder: Path | None = None,
        facts: Mapping[str, int] | None = None,
    ) -> None:
        self.arrays, self.ends, self.folder, self.facts = dict(arrays), dict(ends), folder, dict(facts or {})

    def __len__(self) -> int:
        return max((len(ends) - 1 for ends in self.ends.values()), default=0)

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, place: tuple[str, int]) -> np.ndarray:
        name, row = place
        ends = self.ends[name]
        return self.arrays[name][ends[row] : ends[row + 1]]

    def lengths(self, name: str) -> np.ndarray:
        """How long the rows of one name are."""
        return np.diff(self.ends[name])

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The store in a finished folder.

        Raises:
            RecipeError: it holds none, or files of other sizes than were written.
        """
        try:
            facts = json.loads((folder / _FACTS).read_text())
            arrays = {name: _mapped(folder / f"{name}.bin", kind) for name, kind in facts["arrays"].items()}
            ends = {name: _mapped(folder / f"{_ENDS}{name}.bin", "int64") for name in facts["arrays"]}
        except (OSError, ValueError, KeyError) as error:
            raise RecipeError(f"{folder} holds no finished tokens ({error}). Delete it; it is made again.") from error
        wrong = [name for name in arrays if len(arrays[name]) != ends[name][-1]]
        if wrong:
            raise RecipeError(f"{folder} is damaged ({', '.join(wrong)}). Delete it; it is made again.")
        return cls(arrays, ends, folder, facts["facts"])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder} if self.folder else self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Store.open(state["folder"]).__dict__ if len(state) == 1 else state)


def _mapped(path: Path, kind: str) -> np.ndarray:
    if path.stat().st_size == 0:  # nothing cannot be mapped
        return np.zeros(0, np.dtype(kind))
    return np.memmap(path, dtype=np.dtype(kind), mode="r")


class Writer:
    """Takes rows one by one; what is more than `budget` bytes goes to `home`, which is there whole or not at all.

    Args:
        kinds: name -> type of its numbers.
        home: the folder that a store on disk gets.
        budget: bytes kept in memory before all goes to disk.
    """

    def __init__(self, kinds: Mapping[str, str], home: Path, budget: int = BUDGET) -> None:
        self.kinds = {name: np.dtype(kind) for name, kind in kinds.items()}
        self.home, self.budget = home, budget
        self._waiting: dict[str, list[np.ndarray]] = {name: [] for name in kinds}
        self._ends = {name: array("q", [0]) for name in kinds}
        self._bytes = 0
        self._aside: Path | None = None

    def __len__(self) -> int:
        return max((len(ends) - 1 for ends in self._ends.values()), default=0)

    def add(self, row: Mapping[str, Sequence[int] | np.ndarray]) -> None:
        """One row; every name is needed."""
        for name, kind in self.kinds.items():
            values = np.asarray(row[name], kind)
            self._waiting[name].append(values)
            self._ends[name].append(self._ends[name][-1] + len(values))
            self._bytes += values.nbytes + 64
        if self._bytes > (self.budget if self._aside is None else min(self.budget, 2**24)):
            self._spill()

    def found(self) -> Store | None:
        """The store that an earlier run, or another process, finished here."""
        return Store.open(self.home) if (self.home / _FACTS).is_file() else None

    def finish(self, facts: Mapping[str, int]) -> Store:
        """All rows, readable; `facts` are kept with them."""
        if self._aside is None:
            arrays = {name: self._joined(name) for name in self.kinds}
            return Store(arrays, {name: np.array(ends, np.int64) for name, ends in self._ends.items()}, None, facts)
        self._spill()
        for name, ends in self._ends.items():
            np.array(ends, np.int64).tofile(self._aside / f"{_ENDS}{name}.bin")
        told = {"arrays": {name: kind.name for name, kind in self.kinds.items()}, "facts": dict(facts)}
        (self._aside / _FACTS).write_text(json.dumps(told))
        try:
            os.replace(self._aside, self.home)
        except OSError:  # another process was faster: its folder holds the same
            shutil.rmtree(self._aside, ignore_errors=True)
        return Store.open(self.home)

    def give_up(self) -> None:
        """Leave nothing on disk."""
        if self._aside is not None:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _joined(self, name: str) -> np.ndarray:
        parts = self._waiting[name]
        return np.concatenate(parts) if parts else np.zeros(0, self.kinds[name])

    def _spill(self) -> None:
        if self._aside is None:
            self.home.parent.mkdir(parents=True, exist_ok=True)
            self._aside = Path(tempfile.mkdtemp(prefix=f"{self.home.name}.", dir=self.home.parent))
        for name in self.kinds:
            with (self._aside / f"{name}.bin").open("ab") as file:
                self._joined(name).tofile(file)
            self._waiting[name] = []
        self._bytes = 0
