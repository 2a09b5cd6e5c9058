"""One run at a time in one folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from limbeck.errors import RecipeError


@contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for the length of the block. The lock goes with the process, also when it is killed.

    Raises:
        RecipeError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a+")
    except OSError as error:
        raise RecipeError(
            f"the folder {folder} cannot be written ({error.strerror}). Choose another with --out, or make it writable."
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise RecipeError(
                f"{folder} is being written by another run (process {owner}). Wait for it, or give this one a folder of its own with --out."
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield
    finally:
        handle.close()
