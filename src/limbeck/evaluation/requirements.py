"""A run's quality gate: sentences like ``retention >= 0.97``, held against the figures of a result."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.errors import RecipeError, nearest

OPERATORS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SENTENCE = re.compile(rf"\s*([\w.+-]+)\s*(>=|<=|==|>|<)\s*({_NUMBER})\s*")


@dataclass(frozen=True)
class Requirement:
    """One figure, by its dotted path in ``result.json``, against one number."""

    text: str
    figure: str
    sign: str
    bound: float

    def held(self, value: float | None) -> bool:
        """Whether the value meets it; one that is not known (None, nan) never does."""
        return value is not None and not math.isnan(value) and bool(OPERATORS[self.sign](value, self.bound))


def parse(text: str) -> Requirement:
    """Read ``FIGURE SIGN NUMBER``; percentages are written as shares.

    Raises:
        RecipeError: it is not such a sentence.
    """
    match = _SENTENCE.fullmatch(text)
    if match:
        return Requirement(text.strip(), match[1], match[2], float(match[3]))
    raise RecipeError(
        f"cannot read the requirement '{text}': it needs a figure of result.json, one of {' '.join(OPERATORS)}, and a "
        f"number, for example 'retention >= 0.97' or 'student.figures.ece < 0.05'."
    )


def check(requirements: Iterable[str], result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Hold each requirement against a result: ``[{"text", "value", "held"}]``, in their order.

    A figure that the result has but does not know (retention without a teacher) is None and not held.

    Raises:
        RecipeError: a sentence cannot be read, or names no figure of the result.
    """
    answers = []
    for requirement in map(parse, requirements):
        value = _value(requirement.figure, result)
        answers.append({"text": requirement.text, "value": value, "held": requirement.held(value)})
    return answers


def _value(figure: str, result: Mapping[str, Any]) -> float | None:
    found: Any = result
    for part in figure.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, Sequence) and not isinstance(found, str) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            raise _unknown(figure, result)
        if found is None:
            return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _unknown(figure, result)
    return float(found)


def _unknown(figure: str, result: Mapping[str, Any]) -> RecipeError:
    known = list(_numbers(result))
    same_end = [name for name in known if name.rpartition(".")[2] == figure.rpartition(".")[2]]
    tail = f"Did you mean '{same_end[0]}'?" if same_end else nearest(figure, known)
    return RecipeError(f"the result has no figure '{figure}'. {tail}")


def _numbers(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of every number in a result, and of every figure it holds a place for."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}.{key}" if path else str(key))
    elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        yield path
