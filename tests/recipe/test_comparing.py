"""Where two recipes differ."""

from __future__ import annotations

from typing import Any

from torch import nn

from limbeck.recipe import Recipe


def difference(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return Recipe.of(one).difference(Recipe.of(other))


def test_the_same_recipe_has_no_difference_however_it_is_spelled():
    assert (
        difference({"method": {"use": "kd", "temperature": 2}}, {"method": [{"temperature": 2.0, "use": "kd"}]}) == []
    )


def test_every_key_that_differs_is_named_with_both_values():
    one = {"train": {"lr": 0.1, "clip": None}, "method": "kd", "evaluate": "speed", "seed": 1}
    other = {"train": {"lr": 0.2}, "method": {"use": "kd", "temperature": 2}}
    assert difference(one, other) == [
        "method.temperature is 4.0 here and 2.0 there",
        "train.lr is 0.1 here and 0.2 there",
        "train.clip is null here and 1.0 there",
        "evaluate is [speed] here and [quality] there",
        "seed is 1 here and 0 there",
    ]


def test_another_choice_is_one_difference():
    (sentence,) = difference({"train": {"optimizer": "sgd"}}, {"train": {"optimizer": "adamw"}})
    assert sentence == "train.optimizer is {use: sgd} here and {use: adamw} there"


def test_members_and_stages_go_by_name():
    one = [{"name": "a", "method": "kd"}, {"name": "b", "method": "kd", "train": {"lr": 0.1}}]
    other = [{"name": "a", "method": "supervised"}, {"name": "b", "method": "kd", "train": {"lr": 0.2}}]
    found = difference({"stages": one}, {"stages": other})
    assert found[0].startswith("stages.a.method is {use: kd, ")
    assert found[1] == "stages.b.train.lr is 0.1 here and 0.2 there"


def test_what_the_data_filled_in_is_no_difference():
    here = {"data": "x.csv", "student": "a:B", "teacher": "a:C"}
    there = here | {"task": {"use": "classification", "target": "digit", "metric": "kappa"}, "method": "kd"}
    there |= {"student": {"model": "a:B", "view": "image"}}
    assert difference(here, there) == difference(there, here) == []


def test_a_method_that_is_not_the_default_is_a_difference():
    here = {"student": "a:B", "teacher": "a:C", "task": "classification"}
    assert difference(here, here | {"method": "mst-distill"})[0].startswith("method is {use: kd")
    assert difference({"student": "a:B"}, {"student": "a:B", "method": "supervised"}) == []


def test_other_things_that_are_not_there_are_a_difference():
    assert difference({"method": "kd", "teacher": "a:C"}, {"method": "kd"})[0].startswith("teacher is {model: ")
    assert difference({"limit": {"hours": 1}}, {}) == ["limit.hours is 1.0 here and null there"]


def test_two_live_objects_of_one_kind_are_the_same():
    assert difference({"student": nn.Linear(2, 2)}, {"student": nn.Linear(2, 2)}) == []


def test_the_version_does_not_count():
    assert difference({"limbeck": "0.0.1"}, {}) == []
