"""What is tuned, and within which bounds."""

from __future__ import annotations

import builtins
from typing import Any, ClassVar

import pytest

from limbeck import Recipe, RecipeError, Transfer
from limbeck.comparing import tuning
from limbeck.comparing.tuning import Knob, knobs
from limbeck.methods.kd import KD

optuna = pytest.importorskip("optuna")


class Own(KD):
    layers_used: int = 2
    mode: str = "hard"
    margin: float = 0.0

    tunable: ClassVar[dict[str, Any]] = {"layers_used": (1, 4), "mode": ["hard", "weighted"], "margin": (0.0, 1.0)}


class Fixed(Transfer):
    tunable: ClassVar[dict[str, Any]] = {}


def found(method, **train):
    return {knob.key: knob for knob in knobs(Recipe.of({"method": method, "train": train}))}


def test_the_learning_rate_and_what_the_method_says():
    space = found("kd", lr=0.02)
    assert list(space) == ["train.lr", "method.weight", "method.temperature"]
    assert space["train.lr"].among == (0.005, 0.08)
    assert space["method.weight"].among == (0.05, 20.0)
    assert list(found("supervised")) == ["train.lr"]
    assert next(iter(found("mst-distill"))) == "train.lr"
    assert list(found(Fixed)) == ["train.lr"]
    assert list(found(Own)) == ["train.lr", "method.layers_used", "method.mode"]  # a margin of 0 is off, and stays so


def test_terms_of_a_sum_are_tuned_each():
    assert list(found("kd+limbeck.losses:mse")) == [
        *("train.lr", "method.kd.weight", "method.kd.temperature"),
        "method.mse.weight",
    ]


def test_what_is_off_or_a_schedule_stays():
    assert list(found({"use": "kd", "weight": 0.0})) == ["train.lr", "method.temperature"]
    assert list(found({"use": "kd", "weight": {"use": "linear", "start": 0.0, "end": 1.0}})) == [
        *("train.lr", "method.temperature"),
    ]


def drawn(knob, trials=40):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({knob.key: knob.given})
    values = []
    for _ in range(trials):
        trial = study.ask()
        values.append(knob.turn(trial))
        study.tell(trial, 0.0)
    return values


def test_the_given_comes_first_and_the_range_holds_it():
    for knob in (Knob("w", 300.0, (0.05, 20.0)), Knob("w", 0.001, (0.05, 20.0)), Knob("w", 0.123456, (0.05, 20.0))):
        values = drawn(knob)
        assert values[0] == knob.given
        assert all(min(0.05, knob.given) * 0.99 <= value <= max(20.0, knob.given) * 1.01 for value in values)
        assert all(value == float(f"{value:.3g}") for value in values[1:])


def test_ranges_are_logarithmic_unless_they_begin_at_zero():
    log, linear = drawn(Knob("w", 1.0, (0.01, 100.0)), 200), drawn(Knob("m", 0.5, (0.0, 100.0)), 200)
    assert 0.4 < sum(value < 1 for value in log) / 200 < 0.6
    assert sum(value < 1 for value in linear) / 200 < 0.1
    assert set(drawn(Knob("k", 2, (1, 4)))) == {1, 2, 3, 4}
    assert all(isinstance(value, int) for value in drawn(Knob("k", 2, (1, 4))))
    assert set(drawn(Knob("m", "hard", ["hard", "weighted"]))) == {"hard", "weighted"}


def test_settings_arrive_as_they_are():
    recipe = tuning.changed(Recipe.of({"method": "kd"}), {"train.lr": 1.23e-05, "method.weight": 0.5})
    assert (recipe.train.lr, recipe.method["weight"]) == (1.23e-05, 0.5)


def test_without_optuna_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *more):
        if name == "optuna":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RecipeError, match=r"pip install 'limbeck\[search\]'"):
        tuning.the_optuna()
