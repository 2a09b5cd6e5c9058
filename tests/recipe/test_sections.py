"""The keys `task` and `data`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limbeck.data.columns import Image
from limbeck.data.load import load_data
from limbeck.errors import RecipeError
from limbeck.losses import cross_entropy
from limbeck.recipe import Recipe
from limbeck.tasks import KINDS, Task


def refused(**keys: object) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.of(keys)
    return str(caught.value)


def test_every_short_form_of_a_task_means_the_same():
    forms = ["regression", {"use": "regression"}, {"use": "regression", "target": None}]
    assert len({Recipe.of({"task": form}).to_yaml() for form in forms}) == 1


@pytest.mark.parametrize("use", KINDS)
def test_the_metric_of_a_task_is_written_out(use: str):
    assert Recipe.of({"task": use}).task.metric == KINDS[use].metric


def test_a_task_object_is_spelled_out():
    given = Task("classification", target="digit", labels=[0, 1], metric="kappa", loss=cross_entropy)
    assert Recipe.of({"task": given}).to_mapping()["task"] == {
        "use": "classification",
        "target": "digit",
        "labels": ["0", "1"],
        "metric": "kappa",
        "loss": "limbeck.losses:cross_entropy",
    }


def test_a_task_of_ones_own_class_is_kept(here: Path):
    class Mine(Task):
        pass

    own = Mine("classification", target="label")
    recipe = Recipe.of({"task": own, "data": "my_data:make"})
    assert recipe.build_task(recipe.build_data()) is own
    assert recipe.to_mapping()["task"]["use"] == {"live": "Mine given in Python"}


def test_unknown_tasks_and_metrics_are_refused():
    assert refused(task="classfication").endswith("Did you mean 'classification'?")
    assert "not there yet" in refused(task="retrieval")
    assert "unknown metric 'acc'" in refused(task={"use": "classification", "metric": "acc"})
    assert refused(task={"taget": "x"}) == "unknown key 'task.taget'. Did you mean 'target'?"


def test_every_short_form_of_data_means_the_same(here: Path):
    from my_data import make

    forms = ["my_data:make", {"path": "my_data:make"}, make, {"path": make}]
    assert len({Recipe.of({"data": form}).to_yaml() for form in forms}) == 1
    assert Recipe.of({"data": Path("x.csv")}).data.path == "x.csv"


def test_a_path_for_each_split():
    recipe = Recipe.of({"data": {"train": "a.csv", "test": Path("b.csv")}})
    assert recipe.to_mapping()["data"]["path"] == {"train": "a.csv", "test": "b.csv"}


def test_live_data_are_kept_and_noted(here: Path):
    own = load_data("my_data:make")
    recipe = Recipe.of({"data": own})
    assert recipe.build_data() is own
    assert recipe.to_mapping()["data"]["path"] == {"live": "Data given in Python"}


def test_a_function_without_an_address_is_called(here: Path):
    from my_data import make

    recipe = Recipe.of({"data": {"path": lambda rows: make(rows), "args": {"rows": 4}}})
    assert len(recipe.build_data()["train"]) == 4


def test_the_arguments_reach_the_function(here: Path):
    assert len(Recipe.of({"data": "my_data:make"}, "data.args.rows=9").build_data()["train"]) == 9


def test_columns_are_written_out_and_the_rest_is_left_to_the_loader():
    given = {"a": Image(size=8), "b": "image", "c": {"use": "image", "size": 8}, "d": {"size": 4}, "e": None}
    found = Recipe.of({"data": {"path": "x.csv", "columns": given}}).to_mapping()["data"]["columns"]
    assert found["a"] == found["c"] == {"use": "image", "size": 8, "channels": None, "fit": "stretch"}
    assert found["b"]["size"] is None
    assert found["d"] == {"size": 4}
    assert found["e"] is None


def test_what_is_wrong_with_data_is_said():
    assert refused(data=5).startswith("data.path: needed is a path")
    assert refused(data={"columns": {}}) == "data needs the key 'path': data.path=..."
    assert "data.columns.x: unknown kind of column 'imagee'" in refused(data={"path": "x", "columns": {"x": "imagee"}})
    assert refused(data={"path": "x", "splt": "y"}) == "unknown key 'data.splt'. Did you mean 'split'?"
    with pytest.raises(RecipeError, match=r"names no data: data="):
        Recipe.of({}).build_data()


def test_a_data_set_of_tensors_is_no_function():
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, i: int) -> dict:
            return {"x": torch.ones(2), "label": i}

    own = Rows()
    assert Recipe.of({"data": own}).data.path is own


def test_a_generation_is_judged_in_the_features_of_a_classifier():
    recipe = Recipe.of({"task": {"use": "generation", "classifier": "a:Judge"}, "data": "x", "student": "a:B"})
    assert recipe.to_mapping()["task"]["metric"] == "frechet"
    assert recipe.to_mapping()["task"]["classifier"] == "a:Judge"
    assert "generated samples are compared" in refused(task={"use": "classification", "classifier": "a:Judge"})
