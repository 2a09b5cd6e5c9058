"""Half a bridge: the teacher's positions with the student's own width, or the other way round."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from limbeck.bridges.automatic import auto
from limbeck.bridges.base import Bridge, Chain, Identity, Shape, no_way
from limbeck.bridges.tokens import Spread
from limbeck.errors import RecipeError

if TYPE_CHECKING:
    from limbeck.actors import Student, Teacher


def width_of(shape: Shape) -> int:
    """Channels of a map or volume, width of tokens or of a vector."""
    return shape[-1] if len(shape) < 3 else shape[0]


def positions_of(shape: Shape) -> Shape:
    """Where a signal has values: (height, width), (tokens,), or () for a vector."""
    return shape[:-1] if len(shape) < 3 else shape[1:]


def to_positions(student: Shape, teacher: Shape) -> Bridge:
    """To the teacher's kind of signal and its positions, without parameters; the width stays the student's.

    Raises:
        RecipeError: no such way.
    """
    width = width_of(student)
    return auto(student, (*positions_of(teacher), width) if len(teacher) < 3 else (width, *teacher[1:]))


def to_width(student: Shape, teacher: Shape) -> Bridge:
    """To the teacher's kind of signal and its width, with as many positions as the student has (a vector has one).

    Between maps these are the student's own height and width; tokens become a map of one column, a map tokens.

    Raises:
        RecipeError: a volume with tokens or maps.
    """
    width, own = width_of(teacher), positions_of(student)
    if len(teacher) == 1:
        return auto(student, (width,))
    if len(student) == len(teacher):
        return auto(student, (*own, width) if len(teacher) < 3 else (width, *own))
    if max(len(student), len(teacher)) > 3:
        raise no_way(student, teacher, "volumes go to volumes and to vectors only")
    number = math.prod(own)
    return auto(student, (number, width) if len(teacher) == 2 else (width, number, 1))


def to_one_kind(student: Shape, teacher: Shape, what: str) -> Bridge:
    """What a loss over positions needs, which pools the larger size itself: maps with maps, tokens with tokens.

    Args:
        student: the student's shape, without the batch.
        teacher: the teacher's.
        what: the comparison, for the sentence.

    Raises:
        RecipeError: one of them has fewer than two positions, or nothing says which token lies where on the map.
    """
    if min(math.prod(positions_of(shape)) for shape in (student, teacher)) < 2:
        raise no_way(student, teacher, f"{what} compares positions, and one of them has no two of them")
    if len(student) == len(teacher):
        return Identity()
    if max(len(student), len(teacher)) > 3:
        raise no_way(student, teacher, "volumes go to volumes and to vectors only")
    bridge = to_positions(student, teacher)
    if any(isinstance(step, Spread) for step in (bridge.steps if isinstance(bridge, Chain) else [bridge])):
        raise no_way(student, teacher, f"{what} compares positions, and nothing says which token lies where")
    return bridge


def shapes_of(student: Student, teacher: Teacher, pair: tuple[str, str], what: str) -> tuple[Shape, Shape]:
    """The probed shapes of two signals.

    Raises:
        RecipeError: there is no tensor of that name, with what `what` could read instead.
    """
    for actor, name in zip((student, teacher), pair):
        if name not in actor.shapes:
            raise RecipeError(f"{what} reads '{name}': {actor.lacks(name)}")
    return student.shapes[pair[0]], teacher.shapes[pair[1]]
