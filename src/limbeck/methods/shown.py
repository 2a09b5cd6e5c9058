"""What teacher and student are shown, changed for both alike: a further view of a batch, with one draw for all."""

from __future__ import annotations

from typing import Annotated, Any

from jaxtyping import Int64
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from limbeck.choices import plain
from limbeck.errors import RecipeError, nearest
from limbeck.method import Batch, Method, name_of
from limbeck.transforms import Transform, to_transform
from limbeck.views import View

# The annotation of an option that is a list of transforms; one alone, a name or a mapping are read too.
Transforms = Annotated[
    tuple[Any, ...],
    BeforeValidator(lambda given: tuple(map(to_transform, given if isinstance(given, (list, tuple)) else [given]))),
    PlainSerializer(plain),
]


def views(method: Method) -> list[View]:
    """The student's view and the teachers'."""
    teachers = method.teacher.members.values() if method.teacher is not None else []
    return [actor.view for actor in (method.student, *teachers) if actor.view is not None]


def columns(method: Method) -> list[str]:
    """The columns that any of them is shown."""
    return list(dict.fromkeys(key for view in views(method) for key in view.columns))


def check(transforms: tuple[Transform, ...], method: Method, option: str) -> None:
    """Refuse transforms of columns that nobody is shown.

    Raises:
        RecipeError: with the nearest column that is.
    """
    known = columns(method)
    for key in (key for transform in transforms for key in transform.names()):
        if key not in known:
            raise RecipeError(
                f"a transform of {name_of(type(method))}.{option} names '{key}', which no view shows. {nearest(key, known)}"
            )


def refuse_stored(method: Method) -> None:
    """Refuse a teacher whose answers are about the inputs as they were: found by the rows' numbers, they would be wrong.

    Raises:
        RecipeError: one of the teachers is a store.
    """
    for name, teacher in (method.teacher.members if method.teacher is not None else {}).items():
        if teacher.stored:
            raise RecipeError(
                f"{name_of(type(method))} asks the teacher about inputs that it changes in every step, and {name} is a store "
                "of answers about others. Use the teacher itself, or kd."
            )


def changed(
    batch: Batch, method: Method, transforms: tuple[Transform, ...], seeds: Int64[Tensor, "batch"] | None
) -> Batch:
    """The batch with the shown columns transformed, whoever they are shown to."""
    inputs = {key: batch[key] for key in columns(method)}
    for transform in transforms:
        inputs = transform(inputs, seeds)
    return {**batch, **inputs}
