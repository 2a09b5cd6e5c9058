"""Which runs a comparison is made of, what they are called, and what each is compared with."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import Recipe, RecipeError
from limbeck.comparing.plan import Label, baseline, labels, plan, slug
from limbeck.methods.kd import KD

BASE = {
    "task": "classification",
    "data": {"path": "av-digits", "args": {"seed": 0}},
    "teacher": "torch.nn:Linear",
    "student": {"model": "torch.nn:Linear", "view": "image"},
    "method": "kd",
}


def planned(settings, *recipes, **keys):
    return plan([Recipe.of(recipe) for recipe in recipes or (BASE,)], settings, keys)


def arms(found):
    told = labels(found.entries)
    return [told[entry.mark].arm for entry in found.entries]


def test_every_combination_is_a_run():
    found = planned({"method": ["supervised", "kd"], "train.lr": [0.1, 0.01], "seed": [0, 1, 2]})
    assert len(found.entries) == 12
    assert list(dict.fromkeys(arms(found))) == [
        f"{m}, train.lr={lr}" for m in ("supervised", "kd") for lr in (0.1, 0.01)
    ]
    assert [entry.seed for entry in found.entries[:4]] == ["0", "1", "2", "0"]
    assert len({entry.name for entry in found.entries}) == 12
    for entry in found.entries:
        recipe = found.ready[entry.mark]
        assert (recipe.method["use"], recipe.train.lr, recipe.seed) == tuple(entry.settings.values())


def test_settings_are_put_over_the_recipe_in_their_order():
    found = planned({"method": ["kd", {"use": "kd", "weight": 2.0}], "method.temperature": [7]})
    assert [found.ready[e.mark].method["temperature"] for e in found.entries] == [7.0, 7.0]
    assert arms(found) == ["kd", "kd weight=2.0"]  # what is the same everywhere is not in a name
    with pytest.raises(RecipeError, match="temperature"):
        planned({"method": ["kd", "supervised"], "method.temperature": [7]})


def test_the_same_run_is_made_once():
    assert len(planned({"train.lr": [0.1, 1e-1]}).entries) == 1
    found = planned({"teacher": ["torch.nn:Linear", "torch.nn:Bilinear"], "method": ["supervised", "kd"]})
    assert arms(found) == ["supervised", "teacher=torch.nn:Linear, kd", "teacher=torch.nn:Bilinear, kd"]


def test_keys_that_vary_together():
    found = planned({"seed,data.args.seed": [0, 1], "method": ["kd", "supervised"]})
    assert [(e.seed, found.ready[e.mark].data.args["seed"]) for e in found.entries] == [
        *(("0", 0), ("0", 0)),
        *(("1", 1), ("1", 1)),
    ]
    assert set(arms(found)) == {"kd", "supervised"}
    assert {label.problem for label in labels(found.entries).values()} == {""}  # other draws are no other problem
    found = planned({"seed,teacher": [(0, "torch.nn:Linear"), (1, "torch.nn:Bilinear")]})
    assert [found.ready[e.mark].teacher.model for e in found.entries] == ["torch.nn:Linear", "torch.nn:Bilinear"]
    assert set(arms(found)) == {"kd"}


def test_a_second_kind_of_seed_is_a_repetition_too():
    found = planned({"seed": [0, 1], "data.args.seed": [5, 6]})
    assert [entry.seed for entry in found.entries] == ["0-5", "0-6", "1-5", "1-6"]
    assert len(set(labels(found.entries).values())) == 1


def test_data_task_and_view_make_problems():
    found = planned({"data.path": ["av-digits", "av-mnist"], "student.view": ["image", "audio"], "method": ["kd"]})
    assert list(dict.fromkeys(label.problem for label in labels(found.entries).values())) == [
        *("av-digits, sees image", "av-digits, sees audio"),
        *("av-mnist, sees image", "av-mnist, sees audio"),
    ]
    assert set(arms(found)) == {"kd"}
    assert found.entries[1].name == "av-digits-sees-audio-kd-0"


def test_recipes_are_told_apart_by_their_methods_or_else_by_their_names():
    other = BASE | {"method": "supervised"}
    assert arms(planned({}, BASE, other)) == ["kd", "supervised"]
    slow = BASE | {"train": {"lr": 1e-4}}
    assert arms(planned({}, BASE, slow)) == ["kd", "kd-2"]
    assert arms(planned({"seed": [0, 1]}, BASE, BASE | {"seed": 1})) == ["kd", "kd"]  # differ in the seed alone
    elsewhere = BASE | {"data": "av-mnist"}
    found = planned({}, BASE, other, elsewhere, elsewhere | {"method": "supervised"})
    assert arms(found) == ["kd", "supervised", "kd", "supervised"]
    assert len({label.problem for label in labels(found.entries).values()}) == 2


def test_what_was_not_set_is_not_in_the_name():
    """As when a comparison is joined with one that varied another key."""
    one, other = planned({"train.lr": [0.5]}), planned({"method": ["kd", "supervised"]})
    told = labels([*one.entries, *other.entries])
    assert [label.arm for label in told.values()] == ["train.lr=0.5, kd", "kd", "supervised"]


def test_a_recipe_of_one_method_joins_one_of_several():
    one = planned({"method": ["supervised", "kd"], "seed,teacher": [(0, "torch.nn:Linear")]})
    members = {"members": {"a": {"model": "torch.nn:Linear"}, "b": {"model": "torch.nn:Bilinear"}}}
    other = planned({"seed": [0]}, BASE | {"method": "mst-distill", "teacher": members})
    other.entries[0].recipe = "another"
    told = labels([*one.entries, *other.entries])
    assert [label.arm for label in told.values()] == ["supervised", "kd", "mst-distill"]
    other = planned({"seed": [0]}, BASE | {"train": {"lr": 0.5}})
    other.entries[0].recipe = "another"
    told = labels([*one.entries, *other.entries])
    assert [label.arm for label in told.values()] == ["kd, supervised", "kd, kd", "another, kd"]


def test_objects_are_values_too():
    found = planned({"method": [KD(temperature=3.0), KD(), "supervised"]})
    assert arms(found) == ["kd temperature=3.0", "kd", "supervised"]
    assert [found.ready[e.mark].method.get("temperature") for e in found.entries] == [3.0, 4.0, None]
    with pytest.raises(RecipeError, match="give the whole key student"):
        planned({"student.model": [object()]})


@pytest.mark.parametrize("values", ["kd", [], 3])
def test_a_value_that_is_no_list_is_refused(values):
    with pytest.raises(RecipeError, match="'method' needs a list of values"):
        planned({"method": values})


def test_keys_alone_are_a_recipe():
    found = plan([], {"seed": [0, 1]}, BASE)
    assert [found.ready[entry.mark].seed for entry in found.entries] == [0, 1]
    assert planned({"seed": [0]}, train={"lr": 0.5}).entries[0].mark != planned({"seed": [0]}).entries[0].mark


def test_who_is_compared_with_whom():
    def label(problem="", **parts):
        return Label(problem, ", ".join(parts.values()), tuple(parts.items()))

    fast, slow = {"train.lr": "0.1"}, {"train.lr": "0.01"}
    others = {
        (alone := label(method="supervised")): "supervised",
        (kd_fast := label(method="kd", **fast)): "kd",
        (kd_slow := label(method="kd", **slow)): "kd",
        (rkd := label(method="rkd", **slow)): "rkd",
        label("elsewhere", method="kd", **slow): "kd",
    }
    assert baseline(rkd, "rkd", others, "kd") == kd_slow
    assert baseline(rkd, "rkd", others, "supervised") == alone
    assert baseline(kd_fast, "kd", others, "supervised") == alone
    assert baseline(kd_fast, "kd", others, "kd") is None
    assert baseline(alone, "supervised", others, "kd") is None
    assert baseline(label("elsewhere", method="rkd"), "rkd", others, "supervised") is None


@given(st.text(max_size=200))
def test_a_folder_name_is_one_on_every_system(words):
    name = slug(words)
    assert 0 < len(name) <= 80
    assert not set('/\\:*?"<>| \n\0') & set(name)
    assert not name.startswith((".", "-"))


def test_long_names_differ_where_their_words_do():
    names = {slug("x" * 100 + end) for end in "abc"}
    assert len(names) == 3


def test_names_are_unique_though_slugs_are_not():
    found = planned({"student.model": ["a:b", "a/b", "a b"]})
    names = [entry.name for entry in found.entries]
    assert all(one != other for one, other in itertools.combinations(names, 2))
