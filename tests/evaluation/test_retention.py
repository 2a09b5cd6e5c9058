"""Retention and the gap closed, in both directions of better and where they mean nothing."""

import math

import pytest

from limbeck.evaluation.retention import gap_closed, retention


def test_more_is_better():
    assert retention(0.9, 1.0) == 0.9
    assert gap_closed(0.9, 1.0, 0.8) == pytest.approx(0.5)
    assert gap_closed(0.7, 1.0, 0.8) == pytest.approx(-0.5)
    assert gap_closed(1.1, 1.0, 0.8) == pytest.approx(1.5)


def test_less_is_better():
    assert retention(4.0, 2.0, higher_is_better=False) == 0.5
    assert retention(1.0, 2.0, higher_is_better=False) == 2.0
    assert gap_closed(3.0, 2.0, 4.0, higher_is_better=False) == pytest.approx(0.5)


@pytest.mark.parametrize("up", [True, False])
def test_ends_of_the_gap(up):
    teacher, control = (0.9, 0.6) if up else (0.6, 0.9)
    assert gap_closed(control, teacher, control, higher_is_better=up) == 0.0
    assert gap_closed(teacher, teacher, control, higher_is_better=up) == 1.0
    assert retention(teacher, teacher, higher_is_better=up) == 1.0


def test_directions_mirror_each_other():
    assert gap_closed(0.8, 0.9, 0.5) == pytest.approx(gap_closed(0.2, 0.1, 0.5, higher_is_better=False))


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_missing_figures(missing):
    assert retention(missing, 0.9) is None
    assert retention(0.9, missing) is None
    for place in range(3):
        figures = [0.8, 0.9, 0.7]
        figures[place] = missing
        assert gap_closed(*figures) is None


def test_ratios_that_mean_nothing():
    assert retention(0.5, 0.0) is None
    assert retention(0.5, -0.2) is None
    assert retention(-0.1, 0.5) is None
    assert retention(0.0, 0.5) == 0.0
    assert retention(0.0, 0.5, higher_is_better=False) is None
    assert retention(0.5, 0.0, higher_is_better=False) == 0.0


def test_no_gap_to_close():
    assert gap_closed(0.8, 0.9, 0.9) is None
    assert gap_closed(0.8, 0.7, 0.9) is None
    assert gap_closed(0.8, 0.9, 0.7, higher_is_better=False) is None
