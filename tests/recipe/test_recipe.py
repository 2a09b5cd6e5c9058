"""One recipe, three spellings."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.columns import Image
from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError
from limbeck.method import Term
from limbeck.methods.kd import KD
from limbeck.recipe import ORDER, Recipe, RecipeKeys
from limbeck.schedules import Cosine
from limbeck.tasks import Task
from limbeck.views import Noise, View

YAML = """
# A fusion network teaches a small one.
task: {use: classification, target: digit}
data:
  path: manifest.csv
  columns: {image: {use: image, size: 28}}
teacher:
  members:
    both: {model: my_models:Small, args: {width: 16}, view: [image, audio]}
    one: {model: my_models:Small, view: {keys: image, transforms: {use: noise, std: 0.1}}}
student:
  model: my_models:Small
  args: {width: 2}
  view: image
  taps: {hint: first}
  labels: [yes, no, 3]
METHOD
train: {steps: 100, lr: 1e-3, schedule: {use: cosine, end: 0.1}, optimizer: sgd, trainees: {critic: {lr: 1e-4}}}
evaluate: [quality, speed]
require: retention >= 0.95
limit: {hours: 12}
export: safetensors
seed: 3
"""

WORDS = [
    "task=classification",
    "task.target=digit",
    "data=manifest.csv",
    "data.columns.image={use: image, size: 28}",
    "teacher.members.both=my_models:Small",
    "teacher.members.both.args.width=16",
    "teacher.members.both.view=[image, audio]",
    "teacher.members.one.model=my_models:Small",
    "teacher.members.one.view=image",
    "teacher.members.one.view.transforms={use: noise, std: 0.1}",
    "student=my_models:Small",
    "student.args={width: 2}",
    "student.view=image",
    "student.taps.hint=first",
    "student.labels=[yes, no, 3]",
    "train.steps=100",
    "train.lr=1e-3",
    "train.schedule.end=0.1",
    "train.optimizer=sgd",
    "train.trainees.critic.lr=1e-4",
    "evaluate=[quality, speed]",
    "require=retention >= 0.95",
    "limit.hours=12",
    "export=safetensors",
    "seed=3",
]


def in_python(small: type[nn.Module]) -> dict[str, Any]:
    noisy = View("image", transforms=Noise(std=0.1))
    return {
        "task": Task("classification", target="digit"),
        "data": {"path": Path("manifest.csv"), "columns": {"image": Image(size=28)}},
        "teacher": {
            "members": {
                "both": Teacher("my_models:Small", args={"width": 16}, view=["image", "audio"]),
                "one": {"model": small, "view": noisy},
            }
        },
        "student": Student(
            "my_models:Small", args={"width": 2}, view="image", taps={"hint": "first"}, labels=["yes", "no", "3"]
        ),
        "train": TrainSettings(
            steps=100,
            epochs=None,
            lr=1e-3,
            schedule=Cosine(end=0.1),
            optimizer="sgd",
            trainees={"critic": {"lr": 1e-4}},
        ),
        "evaluate": ("quality", "speed"),
        "require": ["retention >= 0.95"],
        "limit": {"hours": 12},
        "export": ["safetensors"],
        "seed": 3,
    }


def test_python_yaml_and_the_command_line_resolve_to_the_same_text(here: Path):
    from my_losses import gap
    from my_models import Small
    from my_package.module import MyMethod

    methods: list[tuple[str, list[str], Any]] = [
        ("method: kd", ["method=kd"], KD),
        ("method: {use: kd, temperature: 2}", ["method=kd", "method.temperature=2"], KD(temperature=2)),
        ("method: [kd, 'my_losses:gap']", ["method=kd+my_losses:gap"], KD() + Term(gap)),
        (
            "method: [{use: kd, temperature: 2}, {use: my_losses:gap, weight: 0.5, power: 3}]",
            ["method=kd+my_losses:gap", "method.kd.temperature=2", "method.gap.weight=0.5", "method.gap.power=3"],
            KD(temperature=2) + Term(gap, weight=0.5, power=3),
        ),
        (
            "method: {use: my_package.module:MyMethod, strength: 2}",
            ["method=my_package.module:MyMethod", "method.strength=2"],
            MyMethod(strength=2),
        ),
        ("method: mst-distill", ["method=mst-distill"], "mst-distill"),
        (
            "stages: [{name: a, method: kd, train: {epochs: 2}}]",
            ["stages={name: a, method: kd}", "stages.a.train.epochs=2"],
            [{"name": "a", "method": KD(), "train": {"epochs": 2}}],
        ),
    ]
    for text, words, objects in methods:
        file = here / "fusion.yaml"
        file.write_text(YAML.replace("METHOD", text))
        key = "stages" if text.startswith("stages") else "method"
        in_yaml = Recipe.load(file).to_yaml()
        assert Recipe.of({}, *WORDS, *words).to_yaml() == in_yaml
        assert Recipe.of(in_python(Small) | {key: objects}).to_yaml() == in_yaml


def test_the_file_of_a_plain_recipe_is_about_65_lines_and_begins_with_version_and_command():
    recipe = Recipe.of({"data": "x.csv", "teacher": "a:B", "student": "a:C", "method": "kd"})
    lines = recipe.to_yaml(command="limbeck distill x.yaml\n  seed=1").splitlines()
    assert 55 <= len(lines) <= 70
    assert lines[0].startswith("# limbeck ")
    assert lines[1] == "# limbeck distill x.yaml seed=1"
    assert lines[2].startswith("limbeck: ")
    tops = [line.partition(":")[0] for line in lines[2:] if not line.startswith((" ", "-"))]
    assert tops == ["limbeck", *(key for key in ORDER if key != "stages")]


def test_a_number_is_written_alike_however_it_was_typed():
    spellings = [4, 4.0, "4"]
    assert len({Recipe.of({"method": {"use": "kd", "temperature": value}}).to_yaml() for value in spellings[:2]}) == 1
    assert Recipe.of({}, "method=kd", "method.temperature=4").method["temperature"] == 4.0


names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
numbers = st.floats(1e-9, 1e9)
networks = st.fixed_dictionaries(
    {"model": names.map(lambda name: f"my:{name}")},
    optional={
        "args": st.dictionaries(
            names, st.none() | st.booleans() | st.integers() | numbers | st.text() | st.lists(st.text())
        ),
        "view": names | st.lists(names, min_size=1, unique=True),
        "labels": st.lists(st.text(), min_size=1),
        "dtype": st.sampled_from(["fp32", "bf16"]),
        "weights": names,
    },
)
methods = st.sampled_from(["kd", "supervised", "mst-distill", "kd+limbeck.losses:mse"]) | st.fixed_dictionaries(
    {"use": st.just("kd"), "temperature": numbers, "weight": numbers}
)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["classification", "regression"]),
        "data": st.fixed_dictionaries(
            {"path": names}, optional={"split": names, "args": st.dictionaries(names, st.text())}
        ),
        "teacher": networks
        | st.fixed_dictionaries({"members": st.dictionaries(names, networks, min_size=1, max_size=2)}),
        "student": networks,
        "method": methods,
        "train": st.fixed_dictionaries({}, optional={"steps": st.integers(0, 99), "lr": numbers, "warmup": numbers}),
        "evaluate": st.lists(st.sampled_from(["quality", "speed"])),
        "seed": st.integers(0, 2**40),
    },
)


@settings(max_examples=60, deadline=None)
@given(recipes)
def test_reading_what_was_written_and_writing_it_again_changes_nothing(keys: dict[str, Any]):
    from limbeck.recipe.text import read

    written = Recipe.of(keys).to_yaml()
    again = Recipe.of(read(written, "again"))
    assert again.to_yaml() == written
    assert again.with_settings("seed=0", f"seed={again.seed}").to_yaml() == written


def test_a_recipe_with_live_objects_is_kept_whole_in_python_and_refused_from_its_file(here: Path):
    student, teacher = nn.Linear(5, 3), nn.Linear(5, 3)
    recipe = Recipe.of(
        {"student": {"model": student, "view": "x"}, "teacher": teacher, "data": "my_data:make"}, "train.lr=1e-2"
    )
    assert recipe.build_student().model is student
    assert recipe.build_teacher().model is teacher
    (here / "live.yaml").write_text(recipe.to_yaml())
    with pytest.raises(RecipeError, match=r"needs an object that was Linear given in Python, at teacher\.model"):
        Recipe.load(here / "live.yaml")
    partial = Recipe.load(here / "live.yaml", partial=True)
    assert partial.to_yaml() == recipe.to_yaml()
    assert recipe.difference(partial) == []
    assert len(partial.build_data()["train"]) == 6
    with pytest.raises(RecipeError, match=r"distill\(recipe, student="):
        partial.build_student()
    whole = partial.with_keys({"student": {"model": student, "view": "x"}, "teacher": teacher})
    assert whole.build_student().model is student
    assert whole.to_yaml() == recipe.to_yaml()


def test_keys_replace_whole_and_the_rest_stays():
    recipe = Recipe.of({"train": {"lr": 0.5, "batch_size": 8}, "seed": 3})
    changed = recipe.with_keys({"train": {"lr": 0.25}})
    assert (changed.train.lr, changed.train.batch_size, changed.seed) == (0.25, 64, 3)
    assert recipe.train.lr == 0.5
    assert recipe.with_keys({"stages": [{"name": "a", "method": "kd"}]}).with_keys({"method": "kd"}).stages == []


def test_a_recipe_is_a_source_like_a_file():
    recipe = Recipe.of({"seed": 1})
    assert Recipe.load(recipe, "seed=2").seed == 2
    assert recipe == Recipe.of({"seed": 1})
    assert recipe != Recipe.of({"seed": 2})


def test_a_section_of_another_recipe_is_a_value():
    other = Recipe.of(
        {"teacher": {"members": {"a": "x:Y"}}, "student": "x:Z", "limit": {"hours": 1}, "train": {"steps": 3}}
    )
    keys = {key: getattr(other, key) for key in ("teacher", "student", "limit", "train", "task", "data")}
    assert Recipe.of(keys) == other


def test_fingerprints():
    recipe = Recipe.of({"student": "x:Y", "seed": 1})
    assert recipe.fingerprint() == Recipe.of(recipe.to_mapping()).fingerprint()
    assert recipe.fingerprint() != recipe.with_settings("seed=2").fingerprint()
    assert recipe.fingerprint("student", "train") == recipe.with_settings("seed=2").fingerprint("student", "train")
    assert len(recipe.fingerprint()) == 16


def test_the_fingerprint_sees_live_weights_and_data(here: Path):
    student = nn.Linear(2, 2)
    recipe = Recipe.of({"student": student})
    before = recipe.fingerprint()
    with torch.no_grad():
        student.weight += 1
    assert recipe.fingerprint() != before
    from my_data import make

    marks = {Recipe.of({"data": make(rows)}).fingerprint() for rows in (4, 4, 5)}
    assert len(marks) == 2


def test_the_keyword_types_name_every_key():
    assert set(RecipeKeys.__annotations__) == set(ORDER)
    assert typing.get_type_hints(RecipeKeys)["seed"] is int


def test_errors_are_value_errors_and_nothing_else():
    for keys in ({"student": 3}, {"train": {"lr": "hot"}}, {"method": 3}, {"data": True}, {"stages": 3}, {"limit": 3}):
        with pytest.raises(RecipeError):
            Recipe.of(keys)
