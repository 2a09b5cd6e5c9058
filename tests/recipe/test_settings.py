"""Settings as on the command line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.recipe.settings import Setting, apply
from limbeck.recipe.text import phrase

DEFAULTS = Recipe.of({}).tree()

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


def train(*settings: str, **keys: Any) -> dict[str, Any]:
    return Recipe.of(keys, *settings).to_mapping()["train"]


def refused(*settings: str, **keys: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.of(keys, *settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "path", "value"),
    [
        ("train.lr=1e-3", ("train", "lr"), 1e-3),
        ("export=onnx", ("export",), "onnx"),
        ("teacher.view=[image, sound]", ("teacher", "view"), ["image", "sound"]),
        ("train={lr: 1e-3}", ("train",), {"lr": 1e-3}),
        ("require=retention >= 0.97", ("require",), "retention >= 0.97"),
        ("method=my_package.module:MyMethod", ("method",), "my_package.module:MyMethod"),
        ("teacher=", ("teacher",), None),
        ("data.args.on=yes", ("data", "args", "on"), "yes"),
        ("weights=a=b", ("weights",), "a=b"),
    ],
)
def test_words(words: str, path: tuple, value: object):
    setting = Setting.of(words)
    assert (setting.path, setting.value, setting.typed) == (path, value, words.partition("=")[2])


@given(values)
def test_a_value_written_by_us_is_read_back(value: Any):
    assert Setting.of(f"data.args={phrase(value)}").value == value


@pytest.mark.parametrize("words", ["train.lr", "=1", "train..lr=1", ".lr=1", "train={lr: 1"])
def test_words_that_are_no_setting(words: str):
    with pytest.raises(RecipeError):
        Setting.of(words)


def test_a_key_replaces_and_a_part_changes():
    file = {"train": {"lr": 0.5, "batch_size": 8}}
    assert train("train={lr: 0.1}", **file)["batch_size"] == 64
    changed = train("train.lr=0.1", **file)
    assert (changed["lr"], changed["batch_size"]) == (0.1, 8)


def test_a_part_of_what_the_file_does_not_mention():
    assert train("train.schedule.end=0.1")["schedule"] == {
        "use": "cosine",
        "start": 1.0,
        "end": 0.1,
        "begin": 0.0,
        "until": 1.0,
    }
    assert train("train.trainees.critic.lr=1e-4", train={"lr": 0.1})["trainees"] == {"critic": {"lr": 1e-4}}
    assert train("train.optimizer.betas=[0.9, 0.95]")["optimizer"] == {"use": "adamw", "betas": [0.9, 0.95]}


def test_later_settings_win():
    assert train("train.lr=1", "train.lr=2")["lr"] == 2.0
    assert train("train.optimizer.momentum=0.9", "train.optimizer=sgd")["optimizer"] == {"use": "sgd"}


def test_steps_clear_epochs_and_the_other_way_round():
    assert [train("train.steps=5", train={"epochs": 3})[key] for key in ("steps", "epochs")] == [5, None]
    assert [train("train.epochs=3", train={"steps": 5})[key] for key in ("steps", "epochs")] == [None, 3]
    assert [train("train.steps=5", "train.epochs=3")[key] for key in ("steps", "epochs")] == [None, 3]
    resolved = Recipe.of({}, "train.epochs=3")
    assert resolved.with_settings("train.steps=9").train.epochs is None


def test_a_method_clears_stages_and_the_other_way_round():
    stages = [{"name": "a", "method": "kd"}]
    assert Recipe.of({"stages": stages}, "method=kd").stages == []
    assert Recipe.of({"method": "kd"}, "stages=[{name: a, method: kd}]").method is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("trian.lr=1", "unknown key 'trian'. Did you mean 'train'?"),
        ("lr=1", "unknown key 'lr'. Did you mean 'train.lr'?"),
        ("hours=1", "unknown key 'hours'. Did you mean 'limit.hours'?"),
        ("train.batchsize=1", "unknown key 'train.batchsize'. Did you mean 'batch_size'?"),
        ("train.trainees.critic.lrr=1", "unknown key 'train.trainees.critic.lrr'. Did you mean 'lr'?"),
        ("cache.topk=1", "unknown key 'cache.topk'. Did you mean 'top_k'?"),
    ],
)
def test_message_1_at_every_depth(words: str, sentence: str):
    assert refused(words) == sentence


def test_the_same_mistakes_in_python():
    assert refused(trian=1) == "unknown key 'trian'. Did you mean 'train'?"
    assert refused(lr=1) == "unknown key 'lr'. Did you mean 'train.lr'?"
    assert refused(train={"batchsize": 1}) == "unknown key 'train.batchsize'. Did you mean 'batch_size'?"


def test_short_forms_are_opened_where_a_part_is_changed():
    file = {"teacher": "a:B", "student": "a:C", "data": "x.csv", "task": "classification", "method": "kd"}
    words = [
        "teacher.args.width=4",
        "student.view.named.pixels=image",
        "data.columns.image=image",
        "data.columns.image.size=8",
        "task.target=digit",
        "method.temperature=2",
    ]
    found = Recipe.of(file, *words).to_mapping()
    assert found["teacher"]["model"] == "a:B"
    assert found["teacher"]["args"] == {"width": 4}
    assert found["student"]["view"] == {"named": {"pixels": "image"}}
    assert found["data"]["columns"]["image"]["size"] == 8
    assert (found["task"]["use"], found["task"]["target"]) == ("classification", "digit")
    assert found["method"]["temperature"] == 2.0


def test_a_part_of_a_view_keeps_the_rest():
    file = {"student": {"model": "a:B", "view": "image"}}
    view = Recipe.of(file, "student.view.transforms=[{use: noise, std: 0.1}]").to_mapping()["student"]["view"]
    assert view["keys"] == ["image"]
    assert view["transforms"][0]["std"] == 0.1


def test_a_schedule_among_the_defaults_of_a_method_can_be_changed_in_part():
    found = Recipe.of({"method": "mst-distill"}, "method.balance_weight.every=3").method["balance_weight"]
    assert found == {"use": "step", "start": 1.0, "factor": 0.9, "every": 3, "at_zero": True}


def test_the_name_of_a_lone_method_may_stand_before_its_option():
    assert Recipe.of({"method": "kd"}, "method.kd.temperature=2").method["temperature"] == 2.0


def test_members_of_a_sum_go_by_name_by_address_and_by_number(here: Path):
    for word in ("gap", "1"):
        found = Recipe.of({"method": "kd+my_losses:gap"}, f"method.{word}.power=3").method
        assert found[1]["power"] == 3.0
    assert (
        Recipe.of({"method": "kd+my_losses:gap"}, "method.gap=limbeck.losses:mse").method[1]["use"]
        == "limbeck.losses:mse"
    )


def test_an_option_of_no_method():
    assert refused("method.temperature=2") == (
        "method.temperature=2 is an option of no method. Name the method first: method=kd method.temperature=2"
    )
    assert refused("method.temperature=2", stages=[{"name": "a", "method": "kd"}]) == (
        "the recipe has stages: say whose method it is, e.g. stages.a.method.temperature=2"
    )


def test_parts_of_what_has_none():
    assert refused("train.lr.x=1") == "train.lr is 0.001, which has no parts. Give it whole: train.lr=..."
    assert "method.weight is 1.0, which has no parts" in refused("method.weight.end=0", method="kd")


def test_stages_go_by_name():
    file = {"stages": [{"name": "first", "method": "supervised"}, {"name": "then", "method": "kd+limbeck.losses:mse"}]}
    found = Recipe.of(
        file, "stages.then.method.kd.temperature=2", "stages.first.train.epochs=3", "stages.0.name=one"
    ).stages
    assert found[1].method[0]["temperature"] == 2.0
    assert (found[0].name, found[0].train) == ("one", {"epochs": 3})
    assert refused("stages.last.train.epochs=3", **file) == "stages has no 'last'. There is: first, then."
    assert refused("stages.then.method.temperature=2", **file) == (
        "stages.then.method is the sum kd + mse: say whose option it is, e.g. stages.then.method.kd.temperature=2"
    )


def test_the_given_tree_stays_as_it_is():
    file = {"train": {"lr": 1.0}, "teacher": {"members": {"a": {"model": "x:Y"}}}, "method": [{"use": "kd"}]}
    before = copy.deepcopy(file)
    apply(file, ["train.lr=2", "teacher.members.a.view=x", "method.temperature=3"], DEFAULTS)
    assert file == before


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "lr": st.floats(1e-6, 10),
            "batch_size": st.integers(1, 10**6),
            "epochs": st.integers(0, 99),
            "precision": st.sampled_from(["auto", "fp32", "bf16"]),
            "compile": st.booleans(),
            "clip": st.none() | st.floats(0.1, 9),
        },
    )
)
def test_settings_one_by_one_are_the_mapping_at_once(options: dict):
    words = [f"train.{key}={phrase(value)}" for key, value in options.items()]
    assert train(*words) == train(train=options)
