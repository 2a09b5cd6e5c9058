"""The key `teacher` with an endpoint: three spellings, the file and back, and what does not fit."""

import pytest

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.recipe.networks import MixtureKeys
from limbeck.teachers.endpoint import Endpoint
from limbeck.teachers.mixture import Mixture

KEYS = {"endpoint": "http://here:8000/v1", "model": "qwen", "top_logprobs": 12, "price": 0.5, "classes": 99}


def test_the_file_says_everything_and_builds_the_same(tmp_path):
    recipe = Recipe.of({"teacher": KEYS})
    assert recipe.to_mapping()["teacher"] == {
        "endpoint": "http://here:8000/v1",
        "model": "qwen",
        "view": None,
        "labels": None,
        "tokenizer": None,
        "label_map": "name",
        "prompt": None,
        "price": {"input": 0.5, "output": 0.5},
        "top_logprobs": 12,
        "classes": 99,
        "certainty": 1.0,
        "unknown": "refuse",
        "concurrency": 8,
        "timeout": 120.0,
        "tries": 6,
        "journal": None,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    again = Recipe.load(file)
    assert again == recipe
    teacher = again.build_teacher()
    assert isinstance(teacher, Endpoint)
    assert (teacher.server.endpoint, teacher.server.model, teacher.top, teacher.classes) == (
        KEYS["endpoint"],
        "qwen",
        12,
        99,
    )
    assert teacher.price.usd((10**6, 10**6)) == 1.0


def test_an_object_given_in_python_is_the_teacher_and_its_file_builds_another_like_it(tmp_path):
    mine = Endpoint(
        "http://x/v1", "m", prompt="{text}?", labels=["a", "b"], price={"input": 1, "output": 2}, view="text"
    )
    recipe = Recipe.of({"teacher": mine})
    assert recipe.build_teacher() is mine
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    again = Recipe.load(file).build_teacher()
    assert isinstance(again, Endpoint)
    assert again.fingerprint() == mine.fingerprint()
    assert again.price == mine.price
    assert again.view.spec() == "text"


def test_settings_change_parts():
    priced = KEYS | {"price": {"input": 0.5, "output": 0.5}}
    recipe = Recipe.of({"teacher": priced}, "teacher.top_logprobs=5", "teacher.price.output=2")
    assert recipe.teacher.top_logprobs == 5
    assert recipe.teacher.price == {"input": 0.5, "output": 2.0}
    mine = Endpoint("http://x/v1", "m", classes=9)
    changed = Recipe.of({"teacher": mine}, "teacher.classes=11").build_teacher()
    assert (changed.classes, changed.server.model) == (11, "m")


def test_an_endpoint_among_several_teachers():
    asked = {"endpoint": "http://x/v1", "model": "m", "prompt": "{text}?", "labels": ["a", "b"]}
    recipe = Recipe.of({"teacher": {"members": {"far": asked, "near": "torch.nn:Identity"}}})
    assert isinstance(recipe.teacher, MixtureKeys)
    teacher = recipe.build_teacher()
    assert isinstance(teacher, Mixture)
    assert isinstance(teacher.members["far"], Endpoint)
    assert Recipe.of(recipe.to_mapping()) == recipe


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"weights": "w.safetensors"}, r"teacher\.weights is for a network that runs here"),
        ({"dtype": "bf16"}, r"teacher\.dtype is for a network"),
        ({"pirce": 1}, r"unknown key 'teacher\.pirce'\. Did you mean 'price'\?"),
        ({"price": {"in": 1}}, r"US dollars per million tokens"),
        ({"top_logprobs": 0}, r"teacher\.top_logprobs"),
        ({"unknown": "skip"}, r"teacher\.unknown"),
        ({"tries": 0}, r"teacher\.tries"),
    ],
)
def test_what_does_not_fit(keys, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Recipe.of({"teacher": KEYS | keys})


def test_without_a_model_there_is_nobody_to_ask():
    with pytest.raises(RecipeError, match=r"teacher needs the key 'model'"):
        Recipe.of({"teacher": {"endpoint": "http://x/v1"}})


def test_keys_of_an_endpoint_without_one():
    with pytest.raises(RecipeError, match=r"unknown key 'teacher\.prompt'"):
        Recipe.of({"teacher": {"model": "a:b", "prompt": "{text}"}})
