"""Objects given in Python, in a file: as the address they can be imported from, or as a note that they were there."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import BuiltinFunctionType, FunctionType
from typing import Any

from limbeck.data.column import Column
from limbeck.errors import RecipeError
from limbeck.schedules import Schedule
from limbeck.transforms import Transform
from limbeck.views import View

_MARK = " given in Python"


@dataclass(frozen=True)
class Absent:
    """The place of an object that was given in Python, in a recipe that was read from a file."""

    label: str

    def refuse(self, where: str) -> RecipeError:
        """What to say when the object is needed."""
        return RecipeError(
            f"this recipe needs an object that was {self.label}, at {where}, which a file cannot hold. "
            f"Give it again: distill(recipe, {where.split('.')[0]}=...)"
        )


def label(value: Any) -> str:
    """What the file says of an object without an address."""
    named = isinstance(value, (type, FunctionType, BuiltinFunctionType))
    return f"{value.__name__ if named else type(value).__name__}{_MARK}"


def address(value: Any) -> str | None:
    """`module:name`, where a class or a function can be imported from there by another process; otherwise None."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not callable(value) or not module or not name or "<" in name or module in ("__main__", "builtins"):
        return None
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    parent = module.rpartition(".")[0]  # our losses are a folder of files to us and one module to users
    if parent == "limbeck.losses" and getattr(sys.modules.get(parent), name, None) is value:
        module = parent
    return f"{module}:{name}" if found is value else None


def spell(value: Any, *, addresses: bool = True) -> Any:
    """`value` as plain data: text, numbers, lists and mappings with their order.

    With `addresses` a class or a function is its `module:name`; without (inside arguments, where nobody would import
    it again) it is a note, as every other object without a `spec()` is.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, Integral, Real)):  # also members of enums and numbers of NumPy
        return str(value) if isinstance(value, str) else int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Absent):
        return {"live": value.label}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {spell(key): spell(entry, addresses=addresses) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [spell(entry, addresses=addresses) for entry in value]
    if isinstance(value, (Schedule, Transform, View, Column)):
        return spell(value.spec())
    return (address(value) if addresses else None) or {"live": label(value)}


def revive(value: Any) -> Any:
    """Data from a file with every note of an absent object as an `Absent`; lists and mappings are copied."""
    if isinstance(value, Mapping):
        note = value.get("live")
        if len(value) == 1 and isinstance(note, str) and note.endswith(_MARK):
            return Absent(note)
        return {key: revive(entry) for key, entry in value.items()}
    return [revive(entry) for entry in value] if isinstance(value, list) else value


def absent(value: Any, where: str = "") -> Iterator[tuple[str, Absent]]:
    """Every absent object in a tree, with its dotted place."""
    if isinstance(value, Absent):
        yield where, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from absent(entry, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for entry in value:
            yield from absent(entry, where)
