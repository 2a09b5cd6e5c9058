"""The keys `teacher` and `student`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.sources import save_weights
from limbeck.teachers.mixture import Mixture
from limbeck.views import View


def student(**keys: object) -> Recipe:
    return Recipe.of({"student": keys})


def test_every_short_form_means_the_same(here: Path):
    from my_models import Small

    forms = ["my_models:Small", {"model": "my_models:Small"}, Small, {"model": Small}, Student("my_models:Small")]
    assert len({Recipe.of({"student": form}).to_yaml() for form in forms}) == 1


def test_a_class_with_arguments_has_an_address(here: Path):
    from my_models import Small

    recipe = student(model=Small, args={"width": 7})
    assert recipe.student_spec() == {"model": "my_models:Small", "args": {"width": 7}}
    assert recipe.build_student().model.first.out_features == 7


def test_a_class_without_an_address_is_called_and_noted():
    class Local(nn.Linear):
        pass

    recipe = student(model=Local, args={"in_features": 2, "out_features": 3}, view="x")
    assert recipe.to_mapping()["student"]["model"] == {"live": "Local given in Python"}
    assert isinstance(recipe.build_student().model, Local)
    with pytest.raises(RecipeError, match=r"student\.args do not fit Local"):
        student(model=Local, args={"widht": 2}).build_student()


def test_a_live_module_is_kept_and_noted():
    network = nn.Linear(2, 3)
    recipe = student(model=network, view="x", labels=[0, 1, 2])
    assert recipe.build_student().model is network
    assert recipe.to_mapping()["student"]["model"] == {"live": "Linear given in Python"}
    assert recipe.student_spec() is None
    assert recipe.student_view() == "x"
    with pytest.raises(RecipeError, match=r"student\.args were given, but student\.model is a finished module"):
        student(model=network, args={"a": 1}).build_student()


def test_a_student_object_is_given_back_as_it_is(here: Path):
    own = Student("my_models:Small", args={"width": 3}, view=View("x"), taps={"hint": "first"}, labels=["a", "b", "c"])
    recipe = Recipe.of({"student": own})
    assert recipe.build_student() is own
    assert Recipe.of({"student": own}, "train.lr=1e-2").build_student() is own
    assert recipe.to_mapping()["student"] == {
        "model": "my_models:Small",
        "args": {"width": 3},
        "weights": None,
        "view": "x",
        "taps": {"hint": "first"},
        "layers": None,
        "lora": None,
        "labels": ["a", "b", "c"],
        "tokenizer": None,
        "dtype": None,
    }


def test_a_part_of_an_object_can_be_changed_and_its_weights_stay(here: Path):
    own = Teacher("my_models:Small", view="x", label_map={"cat": "a"})
    changed = Recipe.of({"teacher": own}, "teacher.view=[y]").build_teacher()
    assert changed is not own
    assert changed.model is own.model
    assert changed.view == View("y")
    assert changed.label_map == {"cat": "a"}
    assert own.view == View("x")


def test_the_weights_of_an_object_are_named_from_here(here: Path):
    from my_models import Small

    save_weights(Small(), here / "small.safetensors")
    by_name = {"model": "my_models:Small", "weights": "small.safetensors"}
    as_object = Teacher("my_models:Small", weights="small.safetensors")
    assert Recipe.of({"teacher": as_object}).to_yaml() == Recipe.of({"teacher": by_name}).to_yaml()


def test_dtypes_paths_and_labels_in_their_python_forms(here: Path):
    recipe = student(
        model=Path("runs/x"), weights=Path("w.safetensors"), dtype=torch.bfloat16, labels=(1, 2), view=("a", "b")
    )
    own = recipe.to_mapping()["student"]
    assert own["model"] == "runs/x"
    assert own["weights"] == "w.safetensors"
    assert own["dtype"] == "bf16"
    assert own["labels"] == ["1", "2"]
    assert own["view"] == ["a", "b"]


def test_a_mixture_in_keys_and_as_an_object(here: Path):
    keys = {"members": {"one": {"model": "my_models:Small", "view": "x"}, "two": "my_models:Small"}, "by": "confidence"}
    recipe = Recipe.of({"teacher": keys})
    made = recipe.build_teacher()
    assert isinstance(made, Mixture)
    assert list(made.members) == ["one", "two"]
    assert made.by == "confidence"
    same = Recipe.of(
        {
            "teacher": Mixture(
                {"one": Teacher("my_models:Small", view="x"), "two": Teacher("my_models:Small")}, by="confidence"
            )
        }
    )
    assert same.to_yaml() == recipe.to_yaml()
    changed = Recipe.of({"teacher": keys}, "teacher.members.two.view=[x]", "teacher.by=mean").to_mapping()["teacher"]
    assert changed["members"]["two"]["view"] == "x"
    assert changed["by"] == "mean"


def test_new_weights_depend_on_the_seed_and_the_name_alone(here: Path):
    recipe = Recipe.of(
        {"student": "my_models:Small", "teacher": {"members": {"a": "my_models:Small", "b": "my_models:Small"}}}
    )
    first = recipe.build_student().model.first.weight
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(recipe.build_student().model.first.weight, first)
    assert torch.equal(torch.get_rng_state(), state)
    members = [teacher.model.first.weight for teacher in recipe.build_teacher().members.values()]
    assert len({tuple(weight.flatten().tolist()) for weight in [first, *members]}) == 3
    assert not torch.equal(recipe.with_settings("seed=1").build_student().model.first.weight, first)


def test_there_is_no_teacher_where_none_is_named(here: Path):
    assert student(model="my_models:Small").build_teacher() is None
    with pytest.raises(RecipeError, match="needs a student: student="):
        Recipe.of({}).build_student()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"teacher": {"endpoint": "http://x", "model": "y", "weights": "w"}}, r"teacher\.weights is for a network"),
        ({"student": {"model": "a:b", "lora": {"rank": 0}}}, r"student\.lora\.rank"),
        (
            {"student": {"model": "a:b", "lora": {"rnak": 4}}},
            r"unknown key 'student\.lora\.rnak'\. Did you mean 'rank'\?",
        ),
        ({"student": {"model": "a:b", "layers": "some"}}, r"student\.layers: "),
        ({"student": {"modle": "a:b"}}, r"unknown key 'student\.modle'\. Did you mean 'model'\?"),
        ({"student": 3}, r"student\.model: a model is a path"),
        ({"student": {"model": "a:b", "dtype": "fp8"}}, r"student\.dtype: input should be 'fp32'"),
        ({"student": {"model": "a:b", "view": {"kees": ["x"]}}}, r"student\.view: unknown key 'kees'"),
        ({"teacher": {"members": {}}}, r"teacher\.members: .*at least 1 item"),
        ({"teacher": {"members": {"a": {"modle": "x"}}}}, r"unknown key 'teacher\.members\.a\.modle'"),
    ],
)
def test_what_does_not_fit_is_said(keys: dict, sentence: str):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.of(keys)


def test_lora_is_a_section_of_its_own():
    written = {"rank": 4, "alpha": None, "targets": ["q_proj"], "dropout": 0.0, "whole": None}
    assert student(model="a:b", lora={"rank": 4, "targets": "q_proj"}).to_mapping()["student"]["lora"] == written
    assert student(model="a:b", lora=None).to_mapping()["student"]["lora"] is None
    assert Recipe.of({"student": "a:b"}, "student.lora.rank=8").student.lora.rank == 8


def test_names_of_classes_are_words_whatever_yaml_makes_of_them():
    words = [
        "student=a:B",
        "student.labels=[yes, true, 3, null]",
        "teacher=a:C",
        "teacher.label_map={true: 3, no: yes}",
    ]
    found = Recipe.of({}, *words).to_mapping()
    assert found["student"]["labels"] == ["yes", "true", "3", "null"]
    assert found["teacher"]["label_map"] == {"true": "3", "no": "yes"}
