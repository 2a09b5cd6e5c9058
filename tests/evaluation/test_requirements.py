"""The quality gate: every operator, dotted figures, and refusals that name the nearest figure."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.evaluation.requirements import OPERATORS, check, parse

RESULT = {
    "name": "digits-1",
    "samples": 450,
    "task": {"metric": "accuracy", "higher_is_better": True},
    "student": {"metric": 0.93, "parameters": 61706, "figures": {"accuracy": 0.93, "ece": 0.04, "kappa": math.nan}},
    "teacher": {"metric": 0.96, "figures": {"accuracy": 0.96, "ece": 0.02}},
    "control": None,
    "retention": 0.97,
    "gap_closed": None,
    "difference": None,
    "stages": [{"name": "warm", "seconds": 3.0}],
}


def test_held_and_missed_in_their_order():
    assert check(["retention >= 0.98", " student.figures.ece<0.05 ", "samples == 450"], RESULT) == [
        {"text": "retention >= 0.98", "value": 0.97, "held": False},
        {"text": "student.figures.ece<0.05", "value": 0.04, "held": True},
        {"text": "samples == 450", "value": 450.0, "held": True},
    ]
    assert check([], RESULT) == []


@given(st.sampled_from(sorted(OPERATORS)), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_every_sign_means_what_python_means(sign, value, bound):
    (answer,) = check([f"retention {sign} {bound!r}"], {"retention": value})
    assert answer["held"] is eval(f"value {sign} bound", {"value": value, "bound": bound})


def test_equality_holds_at_every_inclusive_sign():
    held = {sign: check([f"retention {sign} 0.97"], RESULT)[0]["held"] for sign in OPERATORS}
    assert held == {">=": True, "<=": True, "==": True, ">": False, "<": False}


def test_a_figure_that_is_not_known_is_not_held():
    texts = ["gap_closed > 0", "difference.low > 0", "control.metric < 9", "student.figures.kappa > -2"]
    answers = check(texts, RESULT)
    assert [answer["held"] for answer in answers] == [False] * 4
    assert [answer["value"] for answer in answers[:3]] == [None] * 3


def test_lists_are_counted_from_zero():
    assert check(["stages.0.seconds < 5"], RESULT)[0]["held"]
    with pytest.raises(RecipeError, match=r"no figure 'stages.1.seconds'"):
        check(["stages.1.seconds < 5"], RESULT)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("retension >= 0.9", "no figure 'retension'. Did you mean 'retention'"),
        ("ece < 0.05", "Did you mean 'student.figures.ece'"),
        ("student.figure.ece < 0.05", "Did you mean 'student.figures.ece'"),
        ("name == 3", "no figure 'name'"),
        ("task.higher_is_better == 1", "no figure 'task.higher_is_better'"),
        ("student.figures > 1", "no figure 'student.figures'"),
        ("zzz > 1", "There is: .*retention"),
    ],
)
def test_unknown_figures_name_the_nearest(text, sentence):
    with pytest.raises(RecipeError, match=sentence):
        check([text], RESULT)


@pytest.mark.parametrize(
    "text",
    ["", "retention", "retention => 0.9", "retention >= high", "0.9 <= ", "a >= 1 2", "retention >= 97%", "a = 1"],
)
def test_what_is_no_requirement_is_refused_with_an_example(text):
    with pytest.raises(RecipeError, match=r"cannot read the requirement.*for example"):
        parse(text)


@pytest.mark.parametrize(("number", "value"), [("1e-3", 1e-3), ("-2", -2.0), (".5", 0.5), ("+3.", 3.0)])
def test_numbers(number, value):
    assert parse(f"retention > {number}").bound == value
