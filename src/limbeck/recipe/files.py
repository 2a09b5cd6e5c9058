"""Where recipes lie: files, run folders, and those that come with the package; and which version wrote them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from limbeck import __version__
from limbeck.errors import RecipeError, nearest
from limbeck.recipe import text
from limbeck.recipe.live import revive

FILE = "recipe.yaml"


def named() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("limbeck"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str | Path) -> Path:
    """The file that is meant: a path, a run folder, or a name of ours.

    Raises:
        RecipeError: there is none of this name; the nearest is named.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if (path / FILE).is_file():
        return path / FILE
    if str(source) in named():
        return named()[str(source)]
    if path.is_dir():
        raise RecipeError(f"{source} is a folder without {FILE}, so it is no run folder. Give a recipe file or a run.")
    beside = [str(file) for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    raise RecipeError(
        f"there is no recipe '{source}' (looked for from {Path.cwd()}). {nearest(str(source), [*beside, *named()])}"
    )


def title(path: Path) -> str:
    """What runs of this recipe are called: its file's name, or the run's without its number."""
    return re.sub(r"-\d+$", "", path.resolve().parent.name) if path.name == FILE else path.stem


def read(path: Path) -> dict[str, Any]:
    """The keys of a file, with places of absent objects marked.

    Raises:
        RecipeError: it cannot be read, is no mapping, or was written by a newer version.
    """
    try:
        found = text.read(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, Mapping):
        raise RecipeError(f"{path} is no recipe: needed is a mapping of keys such as student, teacher and data.")
    refuse_newer(found, str(path))
    return revive(found)


def refuse_newer(keys: Mapping[str, Any], source: str) -> None:
    """Refuse a recipe of a version after this one.

    Raises:
        RecipeError: with what can be done about it.
    """
    written, here = _numbers(keys.get("limbeck")), _numbers(version())
    if written and here and written > here:
        raise _unreadable(keys, source, f"this is {version()}")


def foreign(error: RecipeError, keys: Mapping[str, Any], source: str) -> RecipeError:
    """The same error, said better where another version wrote the file and this one does not know a key of it."""
    key = re.search(r"unknown key '([^']+)'", str(error))
    if not key or not _numbers(keys.get("limbeck")) or str(keys["limbeck"]) == version():
        return error
    return _unreadable(keys, source, f"key '{key[1]}'")


def _unreadable(keys: Mapping[str, Any], source: str, reason: str) -> RecipeError:
    path, written = Path(source), keys["limbeck"]
    run = path.parent if path.name == FILE else None
    return RecipeError(
        f"{run or path} was written by limbeck {written}, whose recipe this version cannot read ({reason}). "
        f"pip install limbeck=={written}{f', or take its student: limbeck export {run}' if run else ''}"
    )


def version() -> str:
    """This version."""
    return __version__


def _numbers(written: Any) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", str(written))
    return tuple(map(int, match[0].split("."))) if match and written is not None else ()
