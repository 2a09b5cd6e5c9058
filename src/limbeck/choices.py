"""A choice with options, as recipes spell it: `{use: NAME, option: value}`, and NAME alone is the same.

What can be chosen are pydantic dataclasses, so that their options are checked in Python, YAML and on the command line
alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from limbeck.errors import RecipeError, nearest
from limbeck.options import say
from limbeck.sources import import_from

T = TypeVar("T")


def choose(given: Any, known: Mapping[str, type[T]], kind: type[T], what: str) -> T:
    """Build what `given` names: an object of `kind` already, a name, or a mapping with `use` and options.

    Args:
        given: an object, `name`, `module:Class`, or `{"use": name, option: value}`.
        known: our own classes by name (with hyphens; underscores are read as hyphens).
        kind: the class of which the result must be an instance.
        what: the word for it in messages, such as `schedule`.

    Raises:
        RecipeError: an unknown name or option (the nearest is named), an option missing or of the wrong type.
    """
    if isinstance(given, kind):
        return given
    if isinstance(given, str):
        given = {"use": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("use"), str):
        raise RecipeError(
            f"{what} {given!r}: needed is a name, or a name with options: {{use: {next(iter(known))}, ...}}. "
            f"There is: {', '.join(known)}."
        )
    name: str = given["use"]
    options = {str(key): value for key, value in given.items() if key != "use"}
    made: Any = import_from(name, what) if ":" in name else known.get(name.replace("_", "-"))
    if made is None:
        raise RecipeError(f"unknown {what} '{name}'. {nearest(name, known)}")
    if not (isinstance(made, type) and issubclass(made, kind) and dataclasses.is_dataclass(made)):
        raise RecipeError(f"{what} '{name}': needed is a dataclass derived from {kind.__module__}.{kind.__name__}.")
    fields = [field.name for field in dataclasses.fields(made)]
    for option in options:
        if option not in fields:
            tail = nearest(option, fields) if fields else "It has no options."
            raise RecipeError(f"unknown key '{option}' of {what} '{name}'. {tail}")
    try:
        return cast(T, made(**options))
    except ValidationError as error:
        raise RecipeError(" ".join(_sentence(problem, f"{what} '{name}'") for problem in error.errors())) from error
    except TypeError as error:  # a user's plain dataclass
        raise RecipeError(f"{what} '{name}': {error}.") from error


def spelled(chosen: Any, known: Mapping[str, type]) -> dict[str, Any]:
    """The mapping that `choose` would build an equal object from, with every default written out."""
    names = {made: name for name, made in known.items()}
    kind = type(chosen)
    options = {field.name: plain(getattr(chosen, field.name)) for field in dataclasses.fields(chosen)}
    return {"use": names.get(kind) or f"{kind.__module__}:{kind.__qualname__}"} | options


def plain(value: Any) -> Any:
    """Numbers, strings, lists and mappings only; what has a `spec()` says itself how it is spelled."""
    if hasattr(value, "spec"):
        return value.spec()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def _sentence(problem: Mapping[str, Any], what: str) -> str:
    if problem["type"] == "missing":
        return f"{what} needs the option '{problem['loc'][0]}'."
    if not problem["loc"]:
        return f"{what}: {str(problem['msg']).removeprefix('Value error, ')}"
    return f"{what}: {say(problem)}"
