"""How sure a difference is: intervals from paired samples and from paired seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from limbeck.errors import RecipeError

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Interval:
    """An estimate with its bounds at a confidence level; ``low`` and ``high`` are nan where nothing can be said."""

    mean: float
    low: float
    high: float
    level: float = 0.95
    how: str = ""

    @property
    def known(self) -> bool:
        """Whether there are bounds at all."""
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def decided(self) -> bool:
        """Whether the bounds leave out zero, so that the sign of a difference is more than chance."""
        return self.known and (self.low > 0 or self.high < 0)

    def to_dict(self, what: str) -> dict[str, Any]:
        """As ``result.json`` holds it: what was compared, the numbers (None for nan), and how they came about."""
        numbers = {key: _or_none(getattr(self, key)) for key in ("mean", "low", "high")}
        return {"what": what, **numbers, "level": self.level, "how": self.how}


def paired_bootstrap(
    a: Tensor | Sequence[float],
    b: Tensor | Sequence[float],
    *,
    statistic: str | Statistic = "mean",
    samples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of statistic(a) - statistic(b) when the same rows are drawn again from both.

    ``a`` and ``b`` hold one row per test sample, in one order: for the accuracy 1 where right and 0 where wrong, for
    the loss its value. ``statistic`` is "mean", "median" or a function of an array of rows, so that figures that are
    no means (F1, kappa) can be drawn again from rows of (prediction, target). Equal differences give exactly zero
    width; fewer than two samples give no bounds. Source: Efron & Tibshirani 1993, chapter 13.
    """
    one, other = _rows(a), _rows(b)
    if len(one) != len(other) or not len(one):
        raise RecipeError(
            f"a paired interval needs the same samples on both sides, at least one: {len(one)} and {len(other)} "
            f"were given."
        )
    measure = _named(statistic) if isinstance(statistic, str) else statistic
    estimate = float(measure(one) - measure(other))
    if len(one) < 2:
        return Interval(estimate, math.nan, math.nan, level, "one sample only: no interval")
    how = "paired bootstrap over test samples"
    if isinstance(statistic, str) and np.ptp(one - other) == 0:
        constant = float(one[0] - other[0])
        return Interval(constant, constant, constant, level, how)
    generator = np.random.default_rng(seed)
    if statistic == "mean":
        drawn = _means(one - other, samples, generator)
    else:
        rows = (generator.integers(len(one), size=len(one)) for _ in range(samples))
        drawn = np.array([float(measure(one[row]) - measure(other[row])) for row in rows])
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), level, how)


def paired_t(differences: Tensor | Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean of differences, one per seed: mean ± t(level, n - 1) * s / sqrt(n).

    Equal differences give exactly zero width; one seed gives no bounds and ``how`` says so. Source: Student 1908.
    """
    from scipy.stats import t

    values = _rows(differences)
    if not len(values):
        raise RecipeError("an interval over seeds needs at least one difference; none was given.")
    if len(values) < 2:
        return Interval(float(values[0]), math.nan, math.nan, level, "one seed only: no interval")
    how = f"paired t over {len(values)} seeds"
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]), float(values[0]), level, how)
    mean = float(values.mean())
    half = float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Interval(mean, mean - half, mean + half, level, how)


def _rows(values: Tensor | Sequence[float]) -> np.ndarray:
    plain = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    return np.asarray(plain, dtype=np.float64)


def _named(statistic: str) -> Statistic:
    if statistic not in ("mean", "median"):
        raise RecipeError(f"unknown statistic '{statistic}': it is 'mean', 'median' or a function of an array of rows.")
    return np.mean if statistic == "mean" else np.median


def _means(values: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    """Means of rows drawn with replacement. Equal values are drawn together, as counts: right minus wrong has three."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= 64:
        return generator.multinomial(len(values), counts / len(values), size=samples) @ distinct / len(values)
    return np.array([values[generator.integers(len(values), size=len(values))].mean() for _ in range(samples)])


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
