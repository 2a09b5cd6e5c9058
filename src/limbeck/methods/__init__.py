"""The methods, one file each; a class with a `card` of its own in any of these files is found by its name."""

from __future__ import annotations

import importlib
import json
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

from limbeck.errors import RecipeError, nearest
from limbeck.method import Card, Method, Procedure, Term, Terms
from limbeck.sources import import_from

AnyMethod = type[Method] | type[Procedure]


@cache
def all_methods() -> dict[str, AnyMethod]:
    """Every method by the name on its card: ours, then those of installed packages (entry point `limbeck.methods`)."""
    found: dict[str, AnyMethod] = {}
    for module in pkgutil.iter_modules(__path__):
        _collect(importlib.import_module(f"{__name__}.{module.name}"), found)
    for entry in entry_points(group="limbeck.methods"):
        cls = entry.load()
        found.setdefault(cls.card.name, cls)
    return dict(sorted(found.items()))


def _collect(module: object, found: dict[str, AnyMethod]) -> None:
    for value in vars(module).values():
        own = (
            isinstance(value, type)
            and issubclass(value, (Method, Procedure))
            and isinstance(value.__dict__.get("card"), Card)
        )
        if own and value.__module__ == getattr(module, "__name__", None):
            found[value.card.name] = value


def find(name: str) -> AnyMethod | Term:
    """The method called `name`, or the class or loss function at `module:attribute` (a function becomes a term).

    Raises:
        RecipeError: nobody has this name; the closest is given.
    """
    if ":" in name:
        made = import_from(name, "method")
        if isinstance(made, type) and issubclass(made, (Method, Procedure)):
            return made
        if isinstance(made, type) or not callable(made):
            raise RecipeError(
                f"method '{name}' is neither a Method nor a function (student, teacher) -> one value per sample."
            )
        return Term(made)
    known = all_methods()
    if name not in known:
        raise RecipeError(f"unknown method '{name}'. {nearest(name, known)}")
    return known[name]


@cache
def evidence() -> dict[str, list[dict[str, Any]]]:
    """What was measured of our methods, by name: where, against whom, the mean difference and its 95 % interval over seeds."""
    return json.loads((files(__name__) / "evidence.json").read_text())


def address(cls: AnyMethod) -> str:
    """How a recipe names this class: its card's name where it is listed, else module:Class."""
    card = getattr(cls, "card", None)
    if isinstance(card, Card) and all_methods().get(card.name) is cls:
        return card.name
    return f"{cls.__module__}:{cls.__qualname__}"


__all__ = ["AnyMethod", "Terms", "address", "all_methods", "evidence", "find"]
