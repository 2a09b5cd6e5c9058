"""Intervals: exact where the answer is known, silent where nothing can be said, true in the long run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.evaluation.intervals import Interval, paired_bootstrap, paired_t


@given(st.integers(2, 40), st.floats(-10, 10), st.sampled_from(["mean", "median"]))
def test_equal_differences_have_no_width(samples, shift, statistic):
    interval = paired_bootstrap([shift] * samples, [0.0] * samples, statistic=statistic, samples=20)
    assert interval.low == interval.high == interval.mean == shift
    seeds = paired_t([shift] * samples)
    assert seeds.low == seeds.high == seeds.mean == shift


def test_one_of_anything_gives_no_bounds_and_says_so():
    for interval, word in ((paired_bootstrap([1.0], [0.0]), "one sample"), (paired_t([0.3]), "one seed")):
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert word in interval.how
        assert not interval.known
        assert not interval.decided
        assert interval.to_dict("a - b")["low"] is None


def test_t_interval_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302652729911275
    interval = paired_t([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.high - 2 == pytest.approx(4.302652729911275 / math.sqrt(3), abs=1e-9)
    assert 2 - interval.low == pytest.approx(interval.high - 2)
    assert paired_t(torch.tensor([1.0, 2.0, 3.0])) == interval
    assert paired_t([1.0, 2.0, 3.0], level=0.5).high < interval.high


def test_bootstrap_of_right_and_wrong_meets_the_normal_limit():
    a = torch.tensor([1.0] * 600 + [0.0] * 400)
    b = torch.zeros(1000)
    interval = paired_bootstrap(a, b, samples=20_000)
    half = 1.959964 * math.sqrt(0.6 * 0.4 / 1000)
    assert interval.mean == pytest.approx(0.6)
    assert interval.low == pytest.approx(0.6 - half, abs=0.002)
    assert interval.high == pytest.approx(0.6 + half, abs=0.002)


def test_bootstrap_of_many_values_meets_the_normal_limit():
    values = np.random.default_rng(3).normal(size=400)
    interval = paired_bootstrap(values, np.zeros(400), samples=4000)
    half = 1.959964 * values.std() / 20
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.06)


def test_pairing_matters():
    b = torch.randn(200, generator=torch.Generator().manual_seed(0))
    a = b + 0.1 + 0.01 * torch.randn(200, generator=torch.Generator().manual_seed(1))
    paired = paired_bootstrap(a, b)
    broken = paired_bootstrap(a, b.flip(0))
    assert paired.decided
    assert not broken.decided
    assert paired.mean == pytest.approx(broken.mean, abs=1e-6)


def test_sides_may_be_swapped():
    a, b = torch.tensor([1.0, 0, 1, 1, 0, 1]), torch.tensor([0.0, 0, 1, 0, 1, 0])
    one, other = paired_bootstrap(a, b, samples=20_000), paired_bootstrap(b, a, samples=20_000)
    assert one.mean == -other.mean
    assert one.low == pytest.approx(-other.high, abs=1e-12)


def test_same_seed_same_interval():
    a, b = torch.rand(50), torch.rand(50)
    assert paired_bootstrap(a, b, seed=4) == paired_bootstrap(a, b, seed=4)
    assert paired_bootstrap(a, b, seed=4) != paired_bootstrap(a, b, seed=5)


def test_a_statistic_that_is_no_mean_is_drawn_from_rows():
    rows = torch.tensor([[0.0, 0], [1, 1], [1, 0], [0, 0], [1, 1]])  # (prediction, target)

    def accuracy(drawn: np.ndarray) -> float:
        return float((drawn[:, 0] == drawn[:, 1]).mean())

    none_right = torch.stack([1 - rows[:, 1], rows[:, 1]], 1)
    by_rows = paired_bootstrap(rows, none_right, statistic=accuracy, samples=500)
    assert by_rows.mean == pytest.approx(0.8)
    assert 0.2 <= by_rows.low < by_rows.high <= 1.0


def test_as_result_json_holds_it():
    interval = Interval(0.02, 0.003, 0.04, 0.95, "paired bootstrap over test samples")
    assert interval.to_dict("student - control") == {
        "what": "student - control", "mean": 0.02, "low": 0.003, "high": 0.04, "level": 0.95,
        "how": "paired bootstrap over test samples",
    }  # fmt: skip
    assert interval.decided
    assert not Interval(0.02, -0.003, 0.04).decided


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: paired_bootstrap([1.0, 2.0], [1.0]), "2 and 1 were given"),
        (lambda: paired_bootstrap([], []), "at least one"),
        (lambda: paired_bootstrap([1.0, 2.0], [1.0, 1.0], statistic="mode"), "'mean', 'median' or a function"),
        (lambda: paired_t([]), "at least one difference"),
    ],
)
def test_what_cannot_be_compared_is_said(call, sentence):
    with pytest.raises(RecipeError, match=sentence):
        call()
