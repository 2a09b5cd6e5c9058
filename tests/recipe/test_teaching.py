"""The key `method`: names, sums, procedures and live objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import RecipeError
from limbeck.losses import mse
from limbeck.method import Sum, Term, Terms, Transfer
from limbeck.methods.kd import KD
from limbeck.methods.mst_distill import MSTDistill
from limbeck.methods.supervised import Supervised
from limbeck.recipe import Recipe
from limbeck.schedules import Cosine


def method(value: Any, *settings: str) -> Any:
    return Recipe.of({"method": value}, *settings).method


def refused(value: Any, *settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.of({"method": value}, *settings)
    return str(caught.value)


KD_2 = {"use": "kd", "weight": 1.0, "task_weight": 1.0, "mask": None, "temperature": 2.0}


@pytest.mark.parametrize(
    "value",
    [
        {"use": "kd", "temperature": 2},
        {"temperature": 2.0, "use": "kd"},
        [{"use": "kd", "temperature": 2}],
        {"use": KD, "temperature": 2},
        KD(temperature=2),
        [KD(temperature=2)],
        "kd",
        KD,
        ["kd"],
    ],
)
def test_every_spelling_of_one_method(value: Any):
    settings = (
        ()
        if "2" in str(value) or (not isinstance(value, (str, type)) and value != ["kd"])
        else ("method.temperature=2",)
    )
    assert method(value, *settings) == KD_2


def test_numbers_and_schedules_are_written_alike():
    as_object = method(KD(weight=Cosine(end=0.5)))
    assert as_object == method({"use": "kd", "weight": {"use": "cosine", "end": 0.5}})
    assert as_object["weight"] == {"use": "cosine", "start": 1.0, "end": 0.5, "begin": 0.0, "until": 1.0}


def test_a_method_of_ones_own_by_address_as_class_and_as_object(here: Path):
    from my_package.module import MyMethod

    whole = {
        "use": "my_package.module:MyMethod",
        "weight": 1.0,
        "task_weight": 1.0,
        "mask": None,
        "strength": 3.0,
        "mode": "soft",
        "share": 0.5,
    }
    assert method({"use": "my_package.module:MyMethod", "strength": 3}) == whole
    assert method({"use": MyMethod, "strength": 3}) == whole
    assert method(MyMethod(strength=3)) == whole
    assert isinstance(Recipe.of({"method": whole}).build_plan(), MyMethod)


def test_a_procedure_of_ones_own(here: Path):
    assert method("my_package.module:MyRounds", "method.rounds=3") == {"use": "my_package.module:MyRounds", "rounds": 3}


def test_sums_as_text_list_and_objects(here: Path):
    from my_losses import gap

    spellings = [
        "kd+my_losses:gap",
        "kd + my_losses:gap",
        ["kd", "my_losses:gap"],
        ["kd", gap],
        [KD, Term(gap)],
        KD() + Term(gap),
        [{"use": "kd"}, {"use": gap}],
        {"use": "kd+my_losses:gap"},
    ]
    found = [method(value) for value in spellings]
    assert all(one == found[0] for one in found)
    assert [one["use"] for one in found[0]] == ["kd", "my_losses:gap"]
    assert "task_weight" in found[0][0]
    assert "task_weight" not in found[0][1]


def test_a_sum_is_built_with_the_task_once(here: Path):
    made = Recipe.of({"method": "kd+my_losses:gap"}, "method.kd.task_weight=0.25", "method.gap.weight=3").build_plan()
    assert isinstance(made, Sum)
    assert list(made.members) == ["kd", "gap"]
    assert made.task_weight == 0.25
    assert made.members["gap"].terms_given[0].weight == 3


def test_a_live_object_is_kept_and_a_name_is_built_anew():
    own = KD()
    recipe = Recipe.of({"method": own}, "train.lr=1e-2")
    assert recipe.build_plan() is own
    named = Recipe.of({"method": "kd"})
    assert named.build_plan() is not named.build_plan()


def test_an_option_of_a_live_object_can_be_changed_and_the_object_stays_as_it_was():
    own = KD(temperature=3)
    made = Recipe.of({"method": own}, "method.temperature=5").build_plan()
    assert isinstance(made, KD)
    assert (made.temperature, own.temperature) == (5.0, 3.0)


def test_what_has_no_address_is_noted(here: Path):
    from my_package.module import OwnConstructor

    class Local(Transfer):
        pass

    assert method(Local()) == {"live": "Local given in Python"}
    assert method(Local) == {"live": "Local given in Python"}
    assert method(OwnConstructor([1])) == {"live": "OwnConstructor given in Python"}
    assert method(lambda student, teacher: student)["live"].endswith("given in Python")
    assert method(["kd", Local()])[1] == {"live": "Local given in Python"}
    assert "what it is made of is changed there" in refused(Local(), "method.weight=2")


def test_message_1_at_every_depth(here: Path):
    assert refused({"use": "kd", "temprature": 2}) == "unknown key 'method.temprature'. Did you mean 'temperature'?"
    assert refused("kd+my_losses:gap", "method.kd.temprature=2") == (
        "unknown key 'method.kd.temprature'. Did you mean 'temperature'?"
    )
    assert refused("kd+my_losses:gap", "method.gap.powr=2") == "unknown key 'method.gap.powr'. Did you mean 'power'?"
    assert refused("kdd").startswith("unknown method 'kdd'. Did you mean 'kd'?")


def test_message_2_an_option_of_a_sum():
    sentence = "method is the sum kd + mse: say whose option it is, e.g. method.kd.temperature=2"
    assert refused("kd+limbeck.losses:mse", "method.temperature=2") == sentence
    assert refused({"use": "kd+limbeck.losses:mse", "temperature": 2}).startswith(
        "method is the sum kd + limbeck.losses:mse"
    )


def test_message_3_a_procedure_in_a_sum():
    sentence = (
        "'mst-distill' is a procedure of its own, not a sum of terms: it cannot be added to anything. Run it before or "
        "after with stages; its options: limbeck methods mst-distill"
    )
    for value in ("kd+mst-distill", "mst-distill+kd", ["kd", MSTDistill()]):
        assert refused(value) == sentence


def test_a_method_that_is_no_transfer_cannot_be_added():
    assert "'supervised' is a procedure of its own" in refused(["kd", Supervised()])


def test_one_member_twice_is_refused():
    assert "stands twice in the sum" in refused("kd+kd")


@pytest.mark.parametrize(
    "value", [["kd", {"use": "limbeck.losses:mse", "task_weight": 2}], [KD(), Terms(Term(mse), task_weight=2.0)]]
)
def test_a_weight_of_the_task_that_would_not_be_used_is_refused(value: Any):
    assert "method.mse.task_weight is not used" in refused(value)
    assert "Write method.kd.task_weight=2.0" in refused(value)


def test_wrong_types_are_answered_in_a_sentence(here: Path):
    assert "temperature: input should be a valid number" in refused("kd", "method.temperature=hot")
    assert "strength: input should be greater than 0" in refused({"use": "my_package.module:MyMethod", "strength": -1})
    assert refused(3) == "method: 3 names no method. Write method=kd, or {use: kd, temperature: 2}."
    assert "nothing to add" in refused("kd+")
    assert "neither a Method nor a Procedure" in refused(type("Other", (), {}))


def test_a_mapping_without_a_name():
    assert "names no method" in refused({"temperature": 2})


def test_names_for_people(here: Path):
    assert Recipe.of({"method": "kd+my_losses:gap"}).method_name() == "kd + gap"
    assert Recipe.of({"method": KD() + Term(mse)}).method_name() == "kd + mse"


def test_a_method_given_in_python_is_missed_when_it_is_needed():
    recipe = Recipe.of({"method": {"live": "Mine given in Python"}})
    assert recipe.method_name() == "Mine"
    with pytest.raises(RecipeError, match="Mine given in Python, at method"):
        recipe.build_plan()


def test_a_method_whose_option_lives_in_python_only(here: Path):
    from my_package.module import Chosen

    assert method(Chosen())["use"] == "my_package.module:Chosen"
    assert method(Chosen(choose=lambda x: x)) == {"live": "Chosen given in Python"}
