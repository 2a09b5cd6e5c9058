"""Bare loss functions as methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from limbeck.errors import RecipeError
from limbeck.losses import kl, mse
from limbeck.method import Term, Terms
from limbeck.recipe import Recipe
from limbeck.schedules import Cosine, Linear


def method(value: Any) -> Any:
    return Recipe.of({"method": value}).method


def test_every_default_is_written_out_in_the_order_of_the_signature(here: Path):
    assert list(method("my_losses:gap").items()) == [
        ("use", "my_losses:gap"),
        ("reads", "logits"),
        ("weight", 1.0),
        ("task_weight", 1.0),
        ("mask", None),
        ("bridge", "auto"),
        ("scope", "sample"),
        ("name", "gap"),
        ("power", 2.0),
    ]


def test_options_of_the_function_the_term_and_the_task(here: Path):
    whole = {
        "use": "my_losses:gap",
        "reads": ["hint", "logits"],
        "weight": 0.5,
        "power": 3,
        "task_weight": 0.1,
        "name": "far",
    }
    made = Recipe.of({"method": whole}).build_plan()
    assert isinstance(made, Terms)
    assert made.task_weight == 0.1
    term = made.terms_given[0]
    assert (term.student_reads, term.teacher_reads, term.name) == ("hint", "logits", "far")
    assert term.weight == 0.5
    assert term.options == {"power": 3.0}
    assert isinstance(term.options["power"], float)
    assert method(
        Terms(Term("my_losses:gap", ("hint", "logits"), weight=0.5, power=3, name="far"), task_weight=0.1)
    ) == method(whole)


def test_our_own_losses_are_called_by_the_short_address():
    assert method(kl) == method("limbeck.losses:kl") == method("limbeck.losses.divergences:kl") == method(Term("kl"))
    assert method(kl)["use"] == "limbeck.losses:kl"
    assert method(kl)["temperature"] == 1.0


def test_the_weight_of_the_transfer_around_a_term_is_multiplied_in():
    assert method(Terms(Term(mse, weight=0.5), weight=3.0))["weight"] == 1.5
    assert method(Terms(Term(mse, weight=Cosine())))["weight"]["use"] == "cosine"
    assert method(Terms(Term(mse), weight=Cosine()))["weight"]["use"] == "cosine"
    assert method(Terms(Term(mse, weight=Linear()), weight=Cosine())) == {"live": "mse given in Python"}


def test_what_a_file_cannot_hold_is_noted():
    assert method(Term(mse, bridge=nn.Linear(2, 2))) == {"live": "mse given in Python"}
    assert method(Terms(Term(mse), Term(kl)))["live"] == "mse given in Python"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"power": "high"}, r"method\.power: input should be a valid number"),
        ({"poweer": 1}, r"unknown key 'method\.poweer'\. Did you mean 'power'\?"),
        ({"scope": "all"}, r"scope 'all' of a term is not known"),
        ({"weight": "much"}, r"unknown schedule 'much'"),
    ],
)
def test_wrong_options(here: Path, options: dict, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        method({"use": "my_losses:gap", **options})


def test_a_function_that_takes_everything_gets_everything():
    def open_ended(student: Any, teacher: Any, **options: Any) -> Any:
        return student

    made = Recipe.of({"method": {"use": open_ended, "b": 1, "a": 2}}).build_plan()
    assert made.terms_given[0].options == {"a": 2, "b": 1}


def test_an_option_without_a_default_must_be_given():
    def strict(student: Any, teacher: Any, margin: float) -> Any:
        return student

    with pytest.raises(RecipeError, match=r"method\.margin: field required"):
        method(strict)
    assert Recipe.of({"method": {"use": strict, "margin": 1}}).build_plan().terms_given[0].options == {"margin": 1.0}
