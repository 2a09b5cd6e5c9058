"""A bare loss function as a member of a sum: `{use: my_losses:gap, weight: 0.5, temperature: 2}`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model
from torch import nn

from limbeck.errors import RecipeError, nearest
from limbeck.method import Term, Terms
from limbeck.options import say
from limbeck.recipe.live import address, spell
from limbeck.schedules import Constant, Schedule

LossFunction = Callable[..., Any]

_OF_TERM = ("reads", "weight", "mask", "bridge", "scope", "name")
_HANDED = ("student", "teacher", "target", "progress", "mask", "weight")  # what the engine gives to a loss function


def build(function: LossFunction, options: Mapping[str, Any], where: str) -> Terms:
    """The function as a transfer; `options` are those of its term, `task_weight`, and its own.

    Raises:
        RecipeError: an unknown option, or a value of the wrong type.
    """
    of_term = {key: options[key] for key in _OF_TERM if key in options}
    if isinstance(of_term.get("reads"), list):
        of_term["reads"] = tuple(of_term["reads"])
    own = {key: value for key, value in options.items() if key not in (*_OF_TERM, "task_weight")}
    around = {"task_weight": options["task_weight"]} if "task_weight" in options else {}
    return Terms(Term(function, **of_term, **_checked(function, own, where)), **around)


def plain(member: Terms) -> dict[str, Any] | None:
    """The mapping that gives an equal one, every default written out; None where there is no such mapping."""
    term, weight = member.terms_given[0], _weight(member)
    if (
        len(member.terms_given) > 1
        or weight is None
        or isinstance(term.bridge, nn.Module)
        or not address(term.function)
    ):
        return None
    own = _checked(term.function, term.options, term.name)
    same = term.student_reads == term.teacher_reads
    return {
        "use": address(term.function),
        "reads": term.student_reads if same else [term.student_reads, term.teacher_reads],
        "weight": spell(weight),
        "task_weight": spell(member.task_weight),
        "mask": term.mask,
        "bridge": term.bridge,
        "scope": term.scope,
        "name": term.name,
    } | spell(own, addresses=False)


def _weight(member: Terms) -> Schedule | None:
    """The weight of a lone term: its own times that of the transfer around it."""
    own, around = member.terms_given[0].weight, member.weight
    if isinstance(own, Constant) and isinstance(around, Constant):
        return Constant(own.value * around.value)
    return own if around == Constant(1.0) else around if own == Constant(1.0) else None


def _checked(function: LossFunction, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A function's own options in the order of its signature, defaults filled in, annotations held."""
    parameters = list(inspect.signature(function).parameters.values())[2:]
    takes_all = any(p.kind == p.VAR_KEYWORD for p in parameters)
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = {p.name: p for p in by_name if p.name not in _HANDED}
    for key in given:
        if key not in known and not takes_all:
            raise RecipeError(f"unknown key '{where}.{key}'. {nearest(key, [*known, *_OF_TERM])}")
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations that only a type checker can read
        hints = {}
    fields: dict[str, Any] = {}
    for key, parameter in known.items():
        hint = hints.get(key, Any)
        fields[key] = (
            Any if "Tensor" in repr(hint) else hint,
            ... if parameter.default is parameter.empty else parameter.default,
        )
    try:
        made = create_model("options", __config__=ConfigDict(extra="allow", arbitrary_types_allowed=True), **fields)(
            **given
        )
    except ValidationError as error:
        raise RecipeError(" ".join(f"{where}.{say(problem)}" for problem in error.errors())) from error
    return {key: getattr(made, key) for key in (*known, *sorted(given.keys() - known.keys()))}
