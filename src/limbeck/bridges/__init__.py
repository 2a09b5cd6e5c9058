"""Modules from a student's signal to the teacher's space. Shapes here are those of one sample, without the batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from limbeck.bridges.automatic import auto
from limbeck.bridges.base import Bridge, Chain, Identity, Shape, no_way
from limbeck.bridges.maps import Conv1x1, Resample
from limbeck.bridges.tokens import MapToTokens, Pool, Spread, TokensToMap
from limbeck.bridges.vectors import MLP, Linear
from limbeck.errors import RecipeError, nearest
from limbeck.sources import import_from

__all__ = [
    "MLP",
    "Bridge",
    "Chain",
    "Conv1x1",
    "Identity",
    "Linear",
    "MapToTokens",
    "Pool",
    "Resample",
    "Spread",
    "TokensToMap",
    "auto",
    "describe",
    "find",
]

_NAMES = ("auto", "none", "linear", "mlp", "conv1x1")


def find(name: str, student_shape: Shape, teacher_shape: Shape, **options: Any) -> nn.Module:
    """The bridge that a recipe means by `name`.

    `auto` follows from the shapes; `none` lets the signal through, whatever the shapes; `linear` and `mlp` change the
    last dimension, `conv1x1` the first; `module:Class` is called with both shapes and the options.

    Raises:
        RecipeError: an unknown name or option, shapes that differ where this bridge changes nothing, or no bridge.
    """
    student, teacher = tuple(student_shape), tuple(teacher_shape)
    if ":" in name:
        own = import_from(name, "bridge")
        try:
            made = own(student, teacher, **options)
        except TypeError as error:
            raise RecipeError(f"bridge '{name}' is called with both shapes and its options: {error}.") from error
        if not isinstance(made, nn.Module):
            raise RecipeError(f"bridge '{name}' gave a {type(made).__name__}; needed is a torch module.")
        return made
    if name not in _NAMES:
        raise RecipeError(f"unknown bridge '{name}'. {nearest(name, _NAMES)} Your own: module:Class.")
    if name in ("auto", "none"):
        _check_options(name, options, [])
        return auto(student, teacher) if name == "auto" else Identity()
    kinds: dict[str, Callable[..., Bridge]] = {"linear": Linear, "mlp": MLP, "conv1x1": Conv1x1}
    parameters = inspect.signature(kinds[name]).parameters.values()
    _check_options(name, options, [p.name for p in parameters if p.kind == p.KEYWORD_ONLY])
    at = 0 if name == "conv1x1" else -1
    if not student or not teacher or _without(student, at) != _without(teacher, at) or (at == 0 and len(student) < 2):
        what = "first dimension, and there must be positions behind it" if at == 0 else "last dimension"
        raise no_way(student, teacher, f"{name} changes only the {what}")
    return kinds[name](student[at], teacher[at], **options)


def describe(bridge: nn.Module, student_shape: Shape, teacher_shape: Shape) -> str:
    """One sentence about what `bridge` does, with its number of parameters."""
    student, teacher = list(student_shape), list(teacher_shape)
    if isinstance(bridge, Identity):
        if student == teacher:
            return f"student and teacher both have {student}, compared as they are."
        return f"the student's {student} and the teacher's {teacher} are compared without a bridge."
    words = bridge.words() if isinstance(bridge, Bridge) else type(bridge).__name__
    count = sum(parameter.numel() for parameter in bridge.parameters())
    after = "shipped with the student" if getattr(bridge, "ships", False) else "left behind at export"
    return (
        f"the student's {student} is brought to the teacher's {teacher} by {words}"
        f" ({f'{count:,} parameters, {after}' if count else 'no parameters'})."
    )


def _without(shape: Shape, at: int) -> Shape:
    return shape[1:] if at == 0 else shape[:-1]


def _check_options(name: str, options: dict[str, Any], known: list[str]) -> None:
    for option in options:
        if option not in known:
            raise RecipeError(
                f"unknown key '{option}' of bridge '{name}'. {nearest(option, known) if known else 'It has no options.'}"
            )
