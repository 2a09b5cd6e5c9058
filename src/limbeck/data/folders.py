"""A folder of files: `root/class/file`, `root/train/class/file`, or files that share a name (`1.jpg`, `1.txt`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.data.column import Column
from limbeck.data.columns import Array, Audio, Image, Label, Text, of
from limbeck.data.splits import is_split, standard
from limbeck.data.table import Part, Table
from limbeck.errors import RecipeError

KINDS: tuple[type[Column], ...] = (Image, Audio, Array, Text)


def folder(root: Path, columns: Mapping[str, Any] | None = None) -> Table:
    """The files below `root` as rows.

    Where all folders in `root` are called like splits, they are; the folders below (or in `root`) are the classes,
    sorted by name. Without folders there are no labels. Files of different kinds that share a name up to its suffix
    make one row. The id of a row is its path in `root`, without suffix when a row is of several files.

    Args:
        columns: as in `load_data`; a column called `photo` of kind image is where the images are put. Columns that
            are not named are called `image`, `audio`, `array`, `text` and `label`.

    Raises:
        RecipeError: no file of a kind that can be read, or two files for one cell.
    """
    tops = _folders(root)
    in_splits = bool(tops) and all(is_split(path.name) for path in tops)
    homes = [(standard(path.name), path) for path in tops] if in_splits else [("", root)]
    classes = sorted({path.name for _, home in homes for path in _folders(home)}, key=_by_number)
    files = [(split, home, file) for split, home in homes for file in _files(home, bool(classes))]
    known = [(split, home, file, _kind(file)) for split, home, file in files if _kind(file)]
    many = len({kind for *_, kind in known}) > 1
    named = _names(columns)
    rows: dict[str, dict[str, Any]] = {}
    for split, home, file, kind in known:
        path = file.relative_to(root)
        id = (path.with_suffix("") if many else path).as_posix()
        row = rows.setdefault(id, {"id": id, "split": split})
        name = named.get(kind, kind)
        if name in row:
            raise RecipeError(f"Two files are the {name} of one row: {row[name]} and {file}. Give one another name.")
        row[name] = file
        if classes:
            row[named.get(Label.use, Label.use)] = file.relative_to(home).parts[0]
    if not rows:
        where = "class/file" if classes else "file"
        suffixes = ", ".join(suffix for kind in KINDS for suffix in kind.suffixes)
        raise RecipeError(f"The folder {root} holds no {where} of a kind that can be read. Suffixes: {suffixes}.")
    names = sorted({name for row in rows.values() for name in row} - {"id", "split"})
    left = Counter(file.suffix.lower() or "no suffix" for *_, file in files if not _kind(file))
    which = ", ".join(f"{count} {suffix}" for suffix, count in left.most_common())
    return Table(
        str(root),
        [Part(list(rows.values()), root, "id", "split" if in_splits else None)],
        names,
        known={named.get(Label.use, Label.use): Label(names=tuple(classes))} if classes else {},
        notices=[f"Files of other kinds in {root} were left out: {which}."] if left else [],
    )


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(home: Path, in_classes: bool) -> list[Path]:
    """Files in the class folders at any depth; without classes those right in `home`."""
    found = [file for folder in _folders(home) for file in folder.rglob("*")] if in_classes else list(home.iterdir())
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def _kind(file: Path) -> str:
    return next((kind.use for kind in KINDS if file.suffix.lower() in kind.suffixes), "")


def _by_number(name: str) -> tuple[bool, int, str]:
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


def _names(columns: Mapping[str, Any] | None) -> dict[str, str]:
    """Kind -> what the user calls it."""
    named: dict[str, str] = {}
    for name, choice in (columns or {}).items():
        use = name if choice is None or (isinstance(choice, Mapping) and "use" not in choice) else of(choice).use
        if use in named:
            raise RecipeError(f"A folder of files has one column of kind {use}; '{named[use]}' and '{name}' both are.")
        named[use] = name
    return named
