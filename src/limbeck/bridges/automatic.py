"""The bridge that follows from two shapes."""

from __future__ import annotations

import math

from limbeck.bridges.base import Bridge, Chain, Identity, Shape, no_way
from limbeck.bridges.maps import Conv1x1, Resample
from limbeck.bridges.tokens import MapToTokens, Pool, Spread, TokensToMap
from limbeck.bridges.vectors import Linear


def auto(student_shape: Shape, teacher_shape: Shape) -> Bridge:
    """The plainest bridge from the student's shape to the teacher's (shapes of one sample, without the batch).

    The number of dimensions says what a signal is: (width,) a vector, (tokens, width) tokens, (channels, height, width)
    a map, four a volume. A signal [channels, time] looks like tokens: name `conv1x1` for it.

    - equal shapes: `Identity`. Another width: `Linear`, or `Conv1x1` for maps. Another number of positions: `Resample`.
    - to a vector: the mean over the positions. From a vector: the same vector everywhere.
    - tokens and maps: row by row, when the tokens are as many as the pixels, or a square, each with or without one CLS
      token before them. Otherwise nothing says which token lies where, and a pooled vector stands for all positions.

    Raises:
        RecipeError: no such way, for example from a volume to tokens.
    """
    student, teacher = tuple(student_shape), tuple(teacher_shape)
    if student == teacher:
        return Identity()
    for whose, shape in (("student", student), ("teacher", teacher)):
        if not shape or len(shape) > 4 or min(shape) < 1:
            raise no_way(student, teacher, f"the {whose}'s has {len(shape)} dimensions; known are 1 to 4, none empty")
    steps = _steps(student, teacher)
    return steps[0] if len(steps) == 1 else Chain(*steps)


def _steps(student: Shape, teacher: Shape) -> list[Bridge]:
    if len(student) == len(teacher):
        return _resized(student, teacher)
    if len(teacher) == 1:
        return [Pool(channels=_channels(student)), *_resized((_width(student),), teacher)]
    if len(student) == 1:
        return [*_resized(student, (_width(teacher),)), Spread(_positions(teacher), channels=_channels(teacher))]
    if 4 in (len(student), len(teacher)):
        raise no_way(student, teacher, "volumes go to volumes and to vectors only")
    tokens_first = len(student) == 2
    tokens, pixels = (student, teacher) if tokens_first else (teacher, student)
    if (grid := _grid(tokens[0], _positions(pixels))) is None:
        vector = (_width(teacher),)
        return [*_steps(student, vector), *_steps(vector, teacher)]
    size, extra = grid
    if tokens_first:
        return [TokensToMap(size, extra=extra), *_resized((tokens[1], *size), teacher)]
    return [*_resized(student, (tokens[1], *size)), MapToTokens(extra=extra)]


def _resized(student: Shape, teacher: Shape) -> list[Bridge]:
    """Between signals of one kind. Where positions become fewer they go first: it is cheaper and gives the same."""
    here, there = _positions(student), _positions(teacher)
    positions: list[Bridge] = [Resample(there, channels=_channels(teacher))] if here != there else []
    affine = Linear if len(student) < 3 else Conv1x1
    widths: list[Bridge] = [affine(_width(student), _width(teacher))] if _width(student) != _width(teacher) else []
    return [*positions, *widths] if math.prod(there) < math.prod(here) else [*widths, *positions]


def _grid(tokens: int, pixels: Shape) -> tuple[tuple[int, int], int] | None:
    """How `tokens` lie on a map that has `pixels`: its height and width, and how many tokens come before it."""
    height, width = pixels
    for extra in (0, 1):
        if tokens - extra == height * width:
            return (height, width), extra
    for extra in (0, 1):
        side = math.isqrt(tokens - extra)
        if side**2 == tokens - extra and side > extra:
            return (side, side), extra
    return None


def _width(shape: Shape) -> int:
    return shape[-1] if len(shape) < 3 else shape[0]


def _positions(shape: Shape) -> Shape:
    return shape[:-1] if len(shape) < 3 else shape[1:]


def _channels(shape: Shape) -> int:
    return -1 if len(shape) < 3 else 1
