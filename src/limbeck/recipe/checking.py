"""What is said when something in a recipe does not fit: where, what is needed, what was given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from limbeck.errors import RecipeError, nearest
from limbeck.options import say

M = TypeVar("M", bound=BaseModel)

# What pydantic adds to a place for the branch of a union that it tried.
_BRANCH = re.compile(r"(int|float|str|bool|none)$|(literal|constrained|dict|list|function|is-instance|json-or)[-\[]")


def later(value: Any, section: str, keys: Mapping[str, str]) -> Any:
    """Refuse keys whose place is kept free, with what to do in the meantime; None is as good as not given."""
    if not isinstance(value, Mapping):
        return value
    for key, instead in keys.items():
        if value.get(key) is not None:
            raise RecipeError(f"{section}.{key} is not there yet; {instead}.")
    return {key: entry for key, entry in value.items() if key not in keys}


def validated(kind: type[M], given: Any, where: str) -> M:
    """A `kind` made of what was given for the key `where`.

    Raises:
        RecipeError: one sentence per problem: an unknown key (the nearest is named), one that is missing, a wrong type.
    """
    try:
        made = kind.model_validate(given)
    except ValidationError as error:
        problems: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for problem in error.errors():
            problems.setdefault(_place(problem), []).append(problem)
        told = [_sentence(kind, list(at), group, where) for at, group in problems.items()]
        unknown = [sentence for sentence in told if sentence.startswith("unknown key")]
        raise RecipeError(" ".join(unknown or told)) from error
    for key, value in given.items() if isinstance(given, Mapping) else ():
        if isinstance(value, bool) and not isinstance(getattr(made, key), bool):  # pydantic takes true for 1
            raise RecipeError(f"{where}.{key}".lstrip(".") + f": input should not be a boolean, given was {value!r}.")
    return made


def _place(problem: Mapping[str, Any]) -> tuple[str, ...]:
    """Where a problem is, without the branch of a union in which pydantic found it."""
    at = [str(part) for part in problem["loc"]]
    return tuple(at[:-1] if at and _BRANCH.match(at[-1]) else at)


def _sentence(kind: type[BaseModel], at: list[str], problems: list[Mapping[str, Any]], where: str) -> str:
    dotted, problem = ".".join([where, *at] if where else at), problems[0]
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'. {nearest(at[-1], fields(kind, at[:-1]))}"
    if problem["type"] == "missing":
        return f"{dotted.rpartition('.')[0]} needs the key '{at[-1]}': {dotted}=..."
    cause = (problem.get("ctx") or {}).get("error")
    if isinstance(cause, RecipeError):
        return str(cause) if str(cause).startswith(dotted) else f"{dotted}: {cause}"
    given = repr(problem.get("input"))
    told = str(problem["msg"])
    if problem["type"] in ("model_type", "dict_type"):
        told = "needed is a mapping of keys to values"
    elif len(problems) > 1:
        told = " or ".join(str(one["msg"]).partition(", unable")[0] for one in problems)
        told = told.replace(" or Input should be ", " or ")
    short = given if len(given) <= 100 else f"{given[:100]}..."
    return say({"loc": [dotted], "msg": told, "input": problem.get("input") if short == given else short})


def fields(kind: type[BaseModel], at: Sequence[str]) -> list[str]:
    """The keys that a mapping at this place inside a section may have."""
    found: Any = kind
    named = False  # the part is a name of the user's own, a key of a mapping of sections
    for part in at:
        if named:
            named = False
        elif found is not None:
            info = found.model_fields.get(part)
            found, named = _model_in(info.annotation if info else None)
    return list(found.model_fields) if found is not None else []


def _model_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that an annotation holds, and whether it holds a mapping of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for part in get_args(annotation):
        model, named = _model_in(part)
        if model is not None:
            return model, named or get_origin(annotation) is dict
    return None, False
