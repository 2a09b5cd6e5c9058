"""The keys `train` and `stages`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError
from limbeck.method import Procedure, Stage, StageResult
from limbeck.methods.kd import KD
from limbeck.methods.supervised import Supervised
from limbeck.recipe import Recipe
from limbeck.recipe.stages import Stages

TWO = [
    {"name": "warm", "method": "supervised", "train": {"steps": 7}},
    {"name": "distil", "method": {"use": "kd", "temperature": 2}},
]


def refused(**keys: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.of(keys)
    return str(caught.value)


def play(procedure: Procedure) -> list[Stage]:
    """All stages, each answered with a result of its name."""
    generator, stages = procedure.stages(), []
    stage = next(generator, None)
    while stage is not None:
        stages.append(stage)
        try:
            stage = generator.send(StageResult(stage.name))
        except StopIteration:
            break
    return stages


def test_train_is_the_engines_own_settings():
    assert isinstance(Recipe.of({}).train, TrainSettings)
    given = TrainSettings(steps=5, epochs=None, lr=0.1)
    assert Recipe.of({"train": given}).train == Recipe.of({"train": {"steps": 5, "lr": 0.1}}).train


def test_giving_steps_clears_the_default_of_epochs():
    assert Recipe.of({"train": {"steps": 5}}).train.epochs is None
    assert Recipe.of({"train": {"steps": None}}).train.epochs == 10


def test_no_budget_and_two_budgets_are_refused():
    assert (
        refused(train={"epochs": None})
        == "train has neither epochs nor steps: give train.epochs=10 or train.steps=1000"
    )
    assert (
        refused(train={"epochs": 1, "steps": 2})
        == "train has epochs and steps; give one of them, and it clears the other."
    )


def test_optimisers_are_tried_out_before_anything_starts():
    assert "Did you mean 'sgd'?" in refused(train={"optimizer": "sdg"})
    assert "unknown key 'train.optimizer.beta' of adamw" in refused(train={"optimizer": {"use": "adamw", "beta": 1}})
    assert refused(train={"optimizer": {"use": "adamw", "betas": [2, 3]}}).startswith("train.optimizer: Invalid beta")
    assert "unknown optimizer 'x'" in refused(train={"trainees": {"critic": {"optimizer": "x"}}})
    assert Recipe.of({"train": {"optimizer": "muon"}}).train.optimizer == {"use": "muon"}


def test_a_trainee_keeps_only_what_is_its_own_and_the_rest_is_the_students_after_reading_it_again():
    recipe = Recipe.of({"train": {"lr": 0.5, "trainees": {"critic": {"lr": 0.1}}}})
    again = Recipe.of(recipe.to_mapping())
    assert recipe.to_mapping()["train"]["trainees"] == {"critic": {"lr": 0.1}}
    for one in (recipe, again):
        assert one.train.of("critic").lr == 0.1
        assert one.train.of("critic").optimizer == {"use": "adamw"}


def test_train_that_is_no_mapping():
    assert refused(train=3).startswith("train: needed is a mapping")


def test_stages_are_resolved_but_keep_only_their_own_settings():
    found = Recipe.of({"stages": TWO}).to_mapping()
    assert "method" not in found
    assert found["stages"][0] == {
        "name": "warm",
        "method": {"use": "supervised", "who": "student"},
        "train": {"steps": 7},
    }
    assert found["stages"][1]["method"]["temperature"] == 2.0
    assert found["stages"][1]["train"] == {}


def test_stages_as_names_methods_and_settings():
    built = Recipe.of({"stages": TWO, "train": {"epochs": 3, "lr": 0.5}}).build_method()
    assert [(name, type(method)) for name, method, _ in built] == [("warm", Supervised), ("distil", KD)]
    assert [(train.steps, train.epochs, train.lr) for _, _, train in built] == [(7, None, 0.5), (None, 3, 0.5)]


def test_stages_as_a_plan():
    plan = Recipe.of({"stages": TWO}).build_plan()
    assert isinstance(plan, Stages)
    assert [(stage.name, type(stage.method), stage.train) for stage in play(plan)] == [
        ("warm", Supervised, {"steps": 7}),
        ("distil", KD, {}),
    ]


def test_a_procedure_plays_its_own_stages_in_its_turn():
    class Rounds(Procedure):
        heard: Any = None

        def stages(self) -> Any:
            first = yield Stage("one", KD(), train={"epochs": 2, "select": "last"})
            second = yield Stage("two", KD(), steps=4)
            third = yield Stage("three", KD())
            object.__setattr__(self, "heard", [first.name, second.name, third.name, self.student])

    own = Rounds()
    around = {"steps": 9, "lr": 0.5}
    plan = Recipe.of({"stages": [{"name": "a", "method": own, "train": around}, TWO[1]]}).build_plan()
    plan.bind("the student", None, None)
    stages = play(plan)
    assert [stage.name for stage in stages] == ["a.one", "a.two", "a.three", "distil"]
    assert [stage.train for stage in stages[:3]] == [
        {"lr": 0.5, "epochs": 2, "select": "last"},
        {"lr": 0.5},
        {"lr": 0.5, "steps": 9},
    ]
    assert stages[1].steps == 4
    assert own.heard == ["a.one", "a.two", "a.three", "the student"]


def test_a_procedure_without_stages_is_passed_over():
    class Idle(Procedure):
        def stages(self) -> Any:
            yield from ()

    plan = Recipe.of({"stages": [{"name": "a", "method": Idle()}, TWO[1]]}).build_plan()
    assert [stage.name for stage in play(plan)] == ["distil"]


def test_one_stage_is_a_list_of_one():
    assert [stage.name for stage in Recipe.of({"stages": TWO[0]}).stages] == ["warm"]


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([{"method": "kd"}], "stages.0 needs the key 'name': stages.0.name=..."),
        ([{"name": "a", "methd": "kd"}], "unknown key 'stages.a.methd'. Did you mean 'method'?"),
        ([{"name": "a", "train": {"epoch": 1}}], "unknown key 'stages.a.train.epoch'. Did you mean 'epochs'?"),
        ([{"name": "a"}, {"name": "a"}], "two stages are called 'a'; give each its own name."),
        (
            [{"name": "a", "method": {"use": "kd", "temprature": 1}}],
            "unknown key 'stages.a.method.temprature'. Did you mean 'temperature'?",
        ),
        (["kd"], "stages.0: needed is a mapping of keys to values, given was 'kd'."),
        ([{"name": "a", "train": {"epochs": None}}], "stages.a.train has neither epochs nor steps"),
    ],
)
def test_what_does_not_fit_in_a_stage(stages: list, sentence: str):
    assert refused(stages=stages).startswith(sentence)


def test_a_method_beside_stages_is_refused():
    assert "a method and stages" in refused(stages=TWO, method="kd")


def test_procedures_of_ones_own_may_be_stages(here: Path):
    recipe = Recipe.of({"stages": [{"name": "a", "method": "my_package.module:MyRounds"}]})
    assert recipe.method_name() == "MyRounds"
