"""From keys to objects; what is left open the data decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError
from limbeck.method import Terms
from limbeck.methods.kd import KD
from limbeck.methods.supervised import Supervised
from limbeck.recipe import Recipe


def data(labels: dict[str, list[str]] | None = None, **columns: torch.Tensor) -> Data:
    return Data({"train": TensorSplit({"x": torch.zeros(4, 5), **columns})}, labels=labels or {})


LABEL = torch.tensor([0, 1, 2, 0])


def test_a_column_called_label_makes_a_classification_and_it_is_said():
    own = data({"label": ["a", "b", "c"]}, label=LABEL)
    recipe = Recipe.of({"data": own, "teacher": "a:B"})
    task = recipe.build_task(recipe.build_data())
    assert (task.name, task.target, task.labels, task.metric) == (
        "classification",
        "label",
        ["a", "b", "c"],
        "accuracy",
    )
    assert recipe.to_mapping()["task"] | {"labels": 0} == {
        "use": "classification",
        "target": "label",
        "labels": 0,
        "metric": "accuracy",
        "loss": None,
    }
    assert recipe.notices == [
        "task: classification of the column 'label', as the data have it",
        "method: kd, the default for classification with a teacher",
    ]


def test_what_is_given_is_kept_and_nothing_is_said():
    recipe = Recipe.of(
        {"task": {"use": "classification", "target": "digit", "labels": "xyz", "metric": "kappa"}, "method": "kd"}
    )
    task = recipe.build_task(data({"digit": ["a", "b", "c"]}, digit=LABEL))
    assert (task.target, task.labels, task.metric) == ("digit", ["xyz"], "kappa")
    assert recipe.notices == []


def test_the_only_label_column_is_the_target():
    assert Recipe.of({}).build_task(data({"digit": ["a", "b", "c"]}, digit=LABEL)).target == "digit"


def test_a_number_per_sample_makes_a_regression():
    recipe = Recipe.of({"task": {"target": "age"}, "teacher": "a:B"})
    assert recipe.build_task(data(age=torch.rand(4))).name == "regression"
    assert recipe.method["use"] == "limbeck.losses:mse"


@pytest.mark.parametrize(
    ("task", "own", "sentence"),
    [
        (None, data(), "say which column it is, of x: task.target="),
        (None, data({"a": ["0"], "b": ["0"]}, a=LABEL, b=LABEL), "of a, b: task.target="),
        ({"target": "digt"}, data(digit=LABEL), r"'digt' is not a column of the data\. Did you mean 'digit'\?"),
        ({"target": "x"}, data(), "neither a label nor a number per sample"),
    ],
)
def test_data_that_do_not_tell(task: Any, own: Data, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.of({"task": task}).build_task(own)


def test_a_loss_of_ones_own(here: Path):
    from my_losses import gap

    for loss in (gap, "my_losses:gap"):
        recipe = Recipe.of({"task": {"use": "classification", "loss": loss}})
        assert recipe.to_mapping()["task"]["loss"] == "my_losses:gap"
        assert recipe.build_task(data(label=LABEL)).function is gap


def test_the_method_of_a_recipe_that_names_none():
    classify = {"task": "classification"}
    assert isinstance(Recipe.of(classify | {"teacher": "a:B"}).build_plan(), KD)
    assert isinstance(Recipe.of(classify).build_plan(), Supervised)
    assert isinstance(Recipe.of({"task": "regression", "teacher": "a:B"}).build_plan(), Terms)
    with pytest.raises(RecipeError, match="no default for segmentation"):
        Recipe.of({"task": "segmentation", "teacher": "a:B"}).build_plan()


def test_the_default_is_said_once_and_also_inside_stages():
    recipe = Recipe.of({"task": "classification", "teacher": "a:B", "stages": [{"name": "a"}, {"name": "b"}]})
    recipe.build_task(data(label=LABEL))
    assert [type(method) for _, method, _ in recipe.build_method()] == [KD, KD]
    assert recipe.to_mapping()["stages"][0]["method"]["use"] == "kd"
    assert sum("method: kd" in sentence for sentence in recipe.notices) == 1


def test_building_changes_nothing_in_a_copy_with_other_keys():
    recipe = Recipe.of({"teacher": "a:B"})
    copied = recipe.with_settings("seed=1")
    recipe.build_task(data(label=LABEL))
    assert copied.task.use is None
    assert copied.method is None
