"""Numbers that change while training: the weight of a term, a temperature, a share.

A schedule is called with the progress of the stage and gives a number. In a recipe a number is a constant, and
`{use: cosine, start: 1, end: 0}` is a schedule; all are pydantic dataclasses, so Python checks the same.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator
from pydantic.dataclasses import dataclass

from limbeck.choices import choose, spelled
from limbeck.errors import RecipeError

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0, le=1)]


class ProgressLike(Protocol):
    """Where a stage stands: `step` of `steps` done, `epoch` of `epochs` under way, `fraction` of it all, in [0, 1]."""

    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def fraction(self) -> float: ...


class Schedule:
    """A number as a function of the progress. Your own: derive a pydantic dataclass and name it `module:Class`."""

    def __call__(self, progress: ProgressLike) -> float:
        """The number at this point of the stage."""
        raise NotImplementedError

    def spec(self) -> float | dict[str, Any]:
        """How a recipe spells it, every default written out; `to_schedule` of it gives an equal schedule."""
        return spelled(self, KNOWN)


@dataclass(frozen=True, config=_CONFIG, eq=False)
class Constant(Schedule):
    """The same `value` always. Equal to the plain number."""

    value: float

    def __call__(self, progress: ProgressLike) -> float:
        return self.value

    def spec(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        return self.value == (other.value if isinstance(other, Constant) else other)

    def __hash__(self) -> int:
        return hash(self.value)


@dataclass(frozen=True, config=_CONFIG)
class _Ramp(Schedule):
    start: float = 1.0
    end: float = 0.0
    begin: Fraction = 0.0
    until: Fraction = 1.0

    @model_validator(mode="after")
    def _in_order(self) -> _Ramp:
        if self.begin >= self.until:
            raise ValueError(f"begin={self.begin} must lie before until={self.until}; both are fractions of the stage.")
        return self

    def _way(self, progress: ProgressLike) -> float:
        return min(max((progress.fraction - self.begin) / (self.until - self.begin), 0.0), 1.0)


@dataclass(frozen=True, config=_CONFIG)
class Linear(_Ramp):
    """A straight line from `start` to `end`, between the fractions `begin` and `until` of the stage; level outside."""

    def __call__(self, progress: ProgressLike) -> float:
        way = self._way(progress)
        return (1 - way) * self.start + way * self.end


@dataclass(frozen=True, config=_CONFIG)
class Cosine(_Ramp):
    """Half a cosine wave from `start` to `end`, between the fractions `begin` and `until`; level outside.

    end + (start - end) (1 + cos(pi x)) / 2. Source: Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts.
    """

    def __call__(self, progress: ProgressLike) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._way(progress))) / 2


@dataclass(frozen=True, config=_CONFIG)
class Step(Schedule):
    """`start`, multiplied by `factor` at the end of every `every`-th epoch.

    start * factor^floor(epoch / every), epochs counted from 0. With `at_zero` the factor is applied at the end of epoch
    0 as well, as a loop does that asks `epoch % every == 0` after each epoch: start * factor^ceil(epoch / every), so
    epoch 0 has `start` and epochs 1 to `every` have start * factor (the released code of MST-Distill).
    """

    start: float = 1.0
    factor: float = 0.5
    every: Annotated[int, Field(ge=1)] = 1
    at_zero: bool = False

    def __call__(self, progress: ProgressLike) -> float:
        times = -(-progress.epoch // self.every) if self.at_zero else progress.epoch // self.every
        return self.start * self.factor**times


@dataclass(frozen=True, config=_CONFIG)
class Piecewise(Schedule):
    """Values at fractions of the stage: `points` = [[0, 1.0], [0.5, 0.1]], fractions rising.

    Each value holds until the next point; with `interpolate` straight lines join the points. The first value holds
    before the first point, the last after the last.
    """

    points: Annotated[tuple[tuple[Fraction, float], ...], Field(min_length=1)]
    interpolate: bool = False

    @model_validator(mode="after")
    def _rising(self) -> Piecewise:
        at = [fraction for fraction, _ in self.points]
        if any(later <= earlier for earlier, later in pairwise(at)):
            raise ValueError(f"the fractions of its points must rise, and they are {', '.join(map(str, at))}.")
        return self

    def __call__(self, progress: ProgressLike) -> float:
        done = [point for point in self.points if point[0] <= progress.fraction]
        if not done:
            return self.points[0][1]
        (here, value), following = done[-1], self.points[len(done) : len(done) + 1]
        if not self.interpolate or not following:
            return value
        (there, target) = following[0]
        way = (progress.fraction - here) / (there - here)
        return (1 - way) * value + way * target


def to_schedule(x: Any) -> Schedule:
    """A schedule out of a number, a schedule, a name, or `{use: name, option: value}`.

    Raises:
        RecipeError: neither of these, an unknown name or option, or a value that does not fit.
    """
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        if not math.isfinite(x):
            raise RecipeError(f"schedule {x}: needed is a finite number.")
        return Constant(float(x))
    return choose(x, KNOWN, Schedule, "schedule")


# The annotation for an option that may be scheduled, `weight: Scalar = 1.0`: pydantic makes a Schedule of it (of the
# default too), and serialises it as the number or mapping that a recipe holds. Any, because the class attribute is
# written as a number and read as a schedule.
Scalar = Annotated[
    Any, BeforeValidator(to_schedule), PlainSerializer(lambda schedule: schedule.spec()), Field(validate_default=True)
]


@dataclass(frozen=True, config=_CONFIG)
class Warmup(Schedule):
    """`then` (a number or a schedule), multiplied by a ramp from 0 to 1 over the first `share` of the stage."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    then: Scalar = 1.0

    def __call__(self, progress: ProgressLike) -> float:
        return min(progress.fraction / self.share, 1.0) * self.then(progress)


KNOWN: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "step": Step,
    "piecewise": Piecewise,
    "warmup": Warmup,
}
