"""Numbers as a person reads them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.report import numbers
from limbeck.report.vocabulary import FIGURES, unit, word

T, M = numbers.THIN, numbers.MINUS


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (numbers.plain(0.93), "0.93"),
        (numbers.plain(0.93, zeros=True), "0.930"),
        (numbers.plain(12345.6), f"12{T}346"),
        (numbers.plain(-0.00123), f"{M}0.00123"),
        (numbers.plain(1.5e-7), f"1.5e{M}7"),
        (numbers.plain(2.5e9), "2.5e9"),
        (numbers.plain(0), "0"),
        (numbers.share(0.9312), f"93.1{T}%"),
        (numbers.share(1.0, 0), f"100{T}%"),
        (numbers.points(0.02), "+2.0"),
        (numbers.points(-0.02), f"{M}2.0"),
        (numbers.points(-0.0004), "0.0"),
        (numbers.points(0.0004), "0.0"),
        (numbers.share(-0.001, 0), f"0{T}%"),
        (numbers.signed(0.5), "+0.5"),
        (numbers.count(61706), f"61{T}706"),
        (numbers.size(246_824), f"247{T}kB"),
        (numbers.size(999.6), f"1.00{T}kB"),
        (numbers.size(12), f"12{T}B"),
        (numbers.size(3e13), f"30{T}TB"),
        (numbers.milliseconds(0.61), f"0.610{T}ms"),
        (numbers.milliseconds(0.61, zeros=False), f"0.61{T}ms"),
        (numbers.milliseconds(2500), f"2.50{T}s"),
        (numbers.duration(31.2), f"31.2{T}s"),
        (numbers.duration(125), f"2{T}min 5{T}s"),
        (numbers.duration(4321), f"1{T}h 12{T}min"),
        (numbers.times(12.42), "12.4×"),
    ],
)
def test_closed_forms(said, wanted):
    assert said == wanted


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf, "fast", True, [1]])
def test_what_is_no_number_is_a_dash(nothing):
    for write in (
        numbers.plain, numbers.share, numbers.points, numbers.signed, numbers.count, numbers.size,
        numbers.milliseconds, numbers.duration, numbers.times,
    ):  # fmt: skip
        assert write(nothing) == numbers.NONE


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12))
def test_three_digits_are_near_the_value(value):
    text = numbers.plain(value).replace(T, "").replace(M, "-")
    assert float(text) == pytest.approx(value, rel=5.1e-3, abs=1e-300)


def test_words_know_shares_and_directions():
    assert word("accuracy").write(0.5) == f"50.0{T}%"
    assert word("accuracy").tick(0.5) == f"50{T}%"
    assert word("accuracy").tick_difference(-0.05) == f"{M}5"
    assert word("nll").write(0.5) == "0.500"
    assert word("nll").difference(0.5) == "+0.5"
    assert word("accuracy").size(-0.021) == "2.1"
    assert not word("rmse").higher_is_better
    assert word("my_figure", higher_is_better=False).name == "my figure"
    assert not word("my_figure", higher_is_better=False).higher_is_better
    assert all(figure.meaning for figure in FIGURES.values())


def test_units_of_findings():
    assert unit("share")(0.5) == f"50.0{T}%"
    assert unit("")(0.5) == "0.500"
    assert unit("ms")(2) == f"2.00{T}ms"
    assert unit("ms")(None) == numbers.NONE


def test_every_figure_and_direction_of_evaluation_is_in_the_vocabulary():
    from limbeck.evaluation import quality

    for table in quality.FIGURES.values():
        for name in table:
            assert FIGURES[name].higher_is_better is quality.primary(name).higher_is_better
