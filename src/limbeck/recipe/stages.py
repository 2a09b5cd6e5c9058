"""The keys `train` and `stages`: how long, with which optimiser, and in which order who learns what."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.engine import optimisers
from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError
from limbeck.method import Card, Method, Procedure, Stage, StageResult
from limbeck.recipe import teaching
from limbeck.recipe.checking import validated
from limbeck.recipe.sections import Section, listed
from limbeck.tasks import Task

DEFAULT = TrainSettings.model_validate({}).optimizer


class StageKeys(Section):
    """`{name, method, train}`; `train` holds only what differs from the recipe's own."""

    name: str
    method: Any = None
    train: dict[str, Any] | None = None


def train(given: Any, where: str = "train") -> TrainSettings:
    """The settings of a training, with its optimisers tried out.

    Raises:
        RecipeError: an unknown key, a wrong value, no budget, or two of them.
    """
    if isinstance(given, TrainSettings):
        given = given.model_dump(exclude_unset=True)
    found = validated(TrainSettings, _one_budget(given, where) if isinstance(given, Mapping) else given or {}, where)
    try:
        for settings in (found, *(found.of(trainee) for trainee in found.trainees)):
            if settings.optimizer == DEFAULT:  # the first optimiser that torch makes takes it two seconds of imports
                continue
            optimisers.build([nn.Parameter(torch.zeros(1, 1))], settings)
    except RecipeError:
        raise
    except (TypeError, ValueError) as error:  # torch refuses a value of an option
        raise RecipeError(f"{where}.optimizer: {error}") from error
    return found


def plain(settings: TrainSettings) -> dict[str, Any]:
    """As the file has it: every default written out; of a trainee only what it has of its own."""
    own = settings.model_dump(include={"trainees"}, exclude_unset=True)
    return settings.model_dump() | ({"trainees": own["trainees"]} if settings.trainees else {})


def over(settings: TrainSettings, own: Mapping[str, Any] | None, where: str) -> TrainSettings:
    """The recipe's settings with a stage's own put over them."""
    own = dict(own or {})
    return train(plain(settings) | _cleared(own) | own, where)


def stages(given: Any, settings: TrainSettings) -> list[StageKeys]:
    """The stages of a recipe, in order; each method a list of members, each `train` checked against the recipe's.

    Raises:
        RecipeError: a stage without a name or with a name that stands twice, or one of which a part does not fit.
    """
    found: list[StageKeys] = []
    for number, entry in enumerate(listed(given) or []):
        where = f"stages.{entry.get('name', number)}" if isinstance(entry, Mapping) else f"stages.{number}"
        stage = validated(StageKeys, entry, where)
        stage.method = teaching.members(stage.method, f"{where}.method")
        whole = plain(over(settings, stage.train, f"{where}.train"))
        cleared = {key for key in ("epochs", "steps") if whole[key] is None}
        stage.train = {key: whole[key] for key in whole if key in (stage.train or {}) and key not in cleared}
        if stage.name in [other.name for other in found]:
            raise RecipeError(f"two stages are called '{stage.name}'; give each its own name.")
        found.append(stage)
    return found


def _one_budget(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Epochs or steps: giving one clears the default of the other."""
    epochs, steps = given.get("epochs"), given.get("steps")
    if epochs is not None and steps is not None:
        raise RecipeError(f"{where} has epochs and steps; give one of them, and it clears the other.")
    found = {**given, **_cleared(given)}
    if "epochs" in found and found["epochs"] is None and steps is None:
        raise RecipeError(f"{where} has neither epochs nor steps: give {where}.epochs=10 or {where}.steps=1000")
    return found


def _cleared(given: Mapping[str, Any]) -> dict[str, None]:
    either = {"steps": "epochs", "epochs": "steps"}
    return {other: None for key, other in either.items() if given.get(key) is not None}


class Stages(Procedure):
    """The stages of a recipe as a procedure; one that is a procedure itself plays its own stages in its turn."""

    card = Card("stages", "Several trainings in a row, as a recipe lists them.", needs=())

    def __init__(self, planned: Sequence[tuple[str, Method | Procedure, Mapping[str, Any]]]):
        super().__init__()
        self.planned = list(planned)

    def bind(self, student: Student, teacher: Teacher | None, task: Task | None) -> Self:
        for _, method, _ in self.planned:
            if isinstance(method, Procedure):
                method.bind(student, teacher, task)
        return super().bind(student, teacher, task)

    def stages(self) -> Generator[Stage, StageResult, None]:
        for name, method, own in self.planned:
            if isinstance(method, Method):
                yield Stage(name, method, train=dict(own))
                continue
            inner = method.stages()
            stage = next(inner, None)
            while stage is not None:
                result = yield _inside(stage, name, own)
                try:
                    stage = inner.send(result)
                except StopIteration:
                    stage = None


def _inside(stage: Stage, name: str, own: Mapping[str, Any]) -> Stage:
    """A procedure's stage under the settings of the stage it plays in; what it says itself counts more."""
    budget = stage.epochs is not None or stage.steps is not None or {"epochs", "steps"} & stage.train.keys()
    around = {key: value for key, value in own.items() if not (budget and key in ("epochs", "steps"))}
    return Stage(f"{name}.{stage.name}", stage.method, stage.epochs, stage.steps, stage.data, around | stage.train)
