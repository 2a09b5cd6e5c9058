"""One recipe, three spellings: Python keywords, YAML, and words of the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from limbeck.actors import Actor, Student, Teacher
from limbeck.data.tensors import Data
from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError
from limbeck.method import Method, Procedure, Term
from limbeck.recipe import building, comparing, files, networks, stages, teaching, text
from limbeck.recipe.checking import validated
from limbeck.recipe.live import absent, revive, spell
from limbeck.recipe.networks import MixtureKeys, StudentKeys, TeacherKeys
from limbeck.recipe.rest import OtherKeys
from limbeck.recipe.sections import DataKeys, Section, TaskKeys, open_data, open_task
from limbeck.recipe.settings import apply, unknown
from limbeck.shipping import exporting
from limbeck.sources import fingerprint
from limbeck.tasks import Task

__all__ = ["Recipe", "RecipeKeys"]

ORDER = (
    *("task", "data", "teacher", "student", "method", "stages", "train"),
    *OtherKeys.model_fields,
)


class RecipeKeys(TypedDict, total=False):
    """The keys of a recipe as keywords: what YAML may say, or the objects themselves."""

    task: str | Mapping[str, Any] | Task
    data: Any
    teacher: str | Path | nn.Module | Teacher | Mapping[str, Any] | None
    student: str | Path | nn.Module | Student | Mapping[str, Any]
    method: str | Mapping[str, Any] | Method | Procedure | Term | type | Sequence[Any] | Any
    stages: Sequence[Mapping[str, Any]]
    train: Mapping[str, Any] | TrainSettings
    control: Any
    evaluate: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
    require: str | Sequence[str]
    limit: Mapping[str, float | None]
    cache: Mapping[str, Any]
    export: str | Sequence[str]
    track: str | Sequence[str]
    seed: int


class Recipe:
    """What is to be distilled from what into what, and how: every default filled in, every value checked.

    Made by `Recipe.of` and `Recipe.load`. Its sections are attributes: `task`, `data`, `teacher`, `student`, `method`
    (as the file has it), `stages`, `train`, `control`, `evaluate`, `require`, `limit`, `cache`, `export`, `track`, `seed`.
    `notices` are sentences about what was decided while building.
    """

    def __init__(self, keys: Mapping[str, Any], *, name: str | None = None):
        keys = {str(key): value.tree() if isinstance(value, Section) else value for key, value in keys.items()}
        files.refuse_newer(keys, "this recipe")
        keys.pop("limbeck", None)
        for key in keys:
            if key not in ORDER:
                raise unknown(key, ORDER)
        given = keys.get
        self.task = validated(TaskKeys, open_task(given("task")), "task")
        self.data = None if given("data") is None else validated(DataKeys, open_data(given("data")), "data")
        self.teacher = _teacher(networks.opened(given("teacher")))
        own = networks.opened(given("student"))
        self.student = None if own is None else validated(StudentKeys, own, "student")
        if given("method") is not None and given("stages"):
            raise RecipeError("the recipe has a method and stages; give one of them (a stage has a method of its own).")
        self.members = teaching.members(given("method"))
        self.train = stages.train(given("train"))
        self.stages = stages.stages(given("stages"), self.train)
        other = validated(OtherKeys, {key: keys[key] for key in OtherKeys.model_fields if key in keys}, "")
        self.control, self.evaluate, self.require = other.control, other.evaluate, other.require
        self.limit, self.cache, self.seed = other.limit, other.cache, other.seed
        self.export, self.track = other.export, other.track
        named = [*self.members, *(member for stage in self.stages for member in stage.method)]
        exporting.refuse_methods(self.export, [teaching.name(member) for member in named])
        self._other = other
        self._name = name
        self.notices: list[str] = []

    @classmethod
    def of(cls, mapping: Mapping[str, Any], *settings: str) -> Recipe:
        """A recipe out of keys, whose values may be live objects, with settings put over them.

        Raises:
            RecipeError: an unknown key (the nearest is named), or a value that does not fit; nothing was started.
        """
        return cls(apply(revive(mapping), settings, _defaults()) if settings else revive(mapping))

    @classmethod
    def load(cls, source: str | Path | Recipe, *settings: str, partial: bool = False) -> Recipe:
        """A recipe out of a file, a run folder, or by the name of one that comes with the package.

        Args:
            settings: changes as on the command line, `"train.lr=1e-4"`.
            partial: leave places open whose objects were given in Python; only building them then fails.

        Raises:
            RecipeError: no such recipe, one of a newer version, one that needs objects that were given in Python, or
                whatever `of` refuses.
        """
        if isinstance(source, Recipe):
            return source.with_settings(*settings)
        path = files.find(source)
        keys = files.read(path)
        try:
            recipe = cls(apply(keys, settings, _defaults()), name=files.title(path))
        except RecipeError as error:
            raise files.foreign(error, keys, str(path)) from error
        missing = next(absent(recipe.tree()), None)
        if missing and not partial:
            raise missing[1].refuse(missing[0])
        return recipe

    def with_settings(self, *settings: str) -> Recipe:
        """The same recipe with settings put over it: `key=` replaces, `key.part=` changes a part."""
        return self.with_keys(apply(self.tree(), settings, _defaults())) if settings else self

    def with_keys(self, keys: Mapping[str, Any]) -> Recipe:
        """The same recipe with whole keys replaced; a method replaces stages, and stages a method."""
        kept = self.tree()
        for key, rival in (("method", "stages"), ("stages", "method")):
            if keys.get(key) is not None:
                kept.pop(rival)
        return Recipe(kept | revive(keys), name=self._name)

    def __repr__(self) -> str:
        return f"Recipe({self.name}: {self.method_name()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.to_mapping() == other.to_mapping()

    __hash__ = None  # type: ignore[assignment]

    @property
    def name(self) -> str:
        """What runs of it are called: the name of its file, else of its method."""
        return self._name or self.method_name().replace(" ", "")

    @property
    def method(self) -> Any:
        """The method as the file has it: a mapping, a list of them for a sum, or None where the task decides."""
        return teaching.plain(self.members)

    def method_name(self) -> str:
        """The method in a few words: `kd`, `kd + gap`, `supervised, then kd`."""
        if self.stages:
            return ", then ".join(_sum(stage.method) for stage in self.stages)
        return _sum(self.members)

    def evaluate_choices(self) -> list[dict[str, Any]]:
        """The checks as choices, `{use: quality}`, with their options where these are not the usual ones."""
        return [{"use": check} if isinstance(check, str) else dict(check) for check in self.evaluate]

    def student_spec(self) -> dict[str, Any] | None:
        """`{model, args}` with which anybody builds the student again; None for one that lives in Python only."""
        if self.student is None or not isinstance(self.student.spelled_model(), str):
            return None
        return {"model": self.student.spelled_model(), "args": self.student.plain()["args"]}

    def student_view(self) -> Any:
        """The student's view as the file has it."""
        return None if self.student is None else self.student.plain()["view"]

    def tree(self) -> dict[str, Any]:
        """All keys, with live objects in their places."""
        found: dict[str, Any] = dict.fromkeys(ORDER)
        for key in ("task", "data", "teacher", "student"):
            section: Section | None = getattr(self, key)
            found[key] = None if section is None else section.tree()
        found["method"] = self.members or None
        found["stages"] = [stage.tree() for stage in self.stages] or None
        return found | {"train": stages.plain(self.train)} | self._other.tree()

    def to_mapping(self) -> dict[str, Any]:
        """All keys as plain data, as the file has them."""
        found: dict[str, Any] = {"limbeck": files.version()}
        for key in ("task", "data", "teacher", "student"):
            section: Section | None = getattr(self, key)
            found[key] = None if section is None else section.plain()
        if self.stages:
            found["stages"] = [{**stage.tree(), "method": teaching.plain(stage.method)} for stage in self.stages]
        else:
            found["method"] = self.method
        return found | {"train": spell(stages.plain(self.train))} | self._other.plain()

    def to_yaml(self, *, command: str | None = None) -> str:
        """The file: resolved, every default written out, keys in a fixed order. `command` goes into a comment on top."""
        head = [f"# limbeck {files.version()}", *([f"# {' '.join(command.split())}"] if command else [])]
        return "\n".join(head) + "\n" + text.write(self.to_mapping())

    def fingerprint(self, *keys: str) -> str:
        """16 hex digits of the SHA-256 over these keys (all, when none is named), and over live weights and data.

        Live networks count with their weights as they are at this moment.
        """
        mapping, tree = self.to_mapping(), self.tree()
        told = {key: mapping.get(key) for key in sorted(keys or mapping.keys() - {"limbeck"})}
        alive = [_mark(tree.get(key)) for key in sorted(told)]
        return hashlib.sha256(json.dumps([told, alive], sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: Recipe) -> list[str]:
        """Where two recipes differ, a dotted key with both values each; nothing differs from what the data filled in."""
        here, there = self._with_default(other), other._with_default(self)
        return comparing.difference(here, there)

    def _with_default(self, other: Recipe) -> dict[str, Any]:
        """Plain data in which the default method is named, as far as either recipe tells what the task is."""
        use = self._use() or other._use()
        named = self.members or self.stages or (self.teacher is not None and use not in building.METHODS)
        return (
            self.to_mapping()
            if named
            else self.with_keys({"method": building.method(use, teacher=self.teacher is not None)}).to_mapping()
        )

    def _use(self) -> str | None:
        use = self.task.use
        return use.name if isinstance(use, Task) else use if isinstance(use, str) else None

    def build_data(self, *, only: str | None = None) -> Data:
        """Load the data; `only`: of files no other split need be there."""
        if self.data is None:
            raise RecipeError("the recipe names no data: data=manifest.csv, or data=av-digits to try it out")
        found = building.data(self.data, only)
        use = building.language(self.task, found)
        if use is None:
            return found
        if self.task.use is None:
            self.notices.append(f"task: {use}, as the columns of the data have it")
            self.task = self.task.model_copy(update={"use": use})
        return building.read(found, use, self.data, self.student, self.teacher)

    def build_task(self, data: Data) -> Task:
        """The task. What the recipe leaves open (kind, target, metric, the method) the data decide; it is written into
        this recipe, and `notices` say so.

        Raises:
            RecipeError: the data do not tell what the task is.
        """
        made = building.task(self.task, data)
        if self.task.use is None or self.task.target is None:
            self.notices.append(f"task: {made.name} of the column '{made.target}', as the data have it")
        if not isinstance(self.task.use, Task):
            own = {"use": made.name, "target": made.target, "metric": made.metric}
            self.task = self.task.model_copy(update=own)
        if not self.stages:
            self.members = self._or_default(self.members)
        for stage in self.stages:
            stage.method = self._or_default(stage.method)
        return made

    def build_student(self) -> Student:
        """The student, its new weights drawn from the recipe's seed alone; one given in Python is given back."""
        if self.student is None:
            raise RecipeError("a recipe needs a student: student=my_models:SmallCNN")
        return self.student.build(Student, "student", self.seed)

    def build_teacher(self) -> Teacher | None:
        """The teacher (or the mixture of its members), drawn as the student is; None where there is none.

        Raises:
            RecipeError: it is asked for a check that needs another teacher.
        """
        made = None if self.teacher is None else networks.teacher(self.teacher, self.seed)
        if self.student is not None and any(choice["use"] == "speculative" for choice in self.evaluate_choices()):
            building.refuse_draft(self.student, made, self._use())
        return made

    def build_method(self) -> Method | Procedure | list[tuple[str, Method | Procedure, TrainSettings]]:
        """The method; of a recipe with stages, a name, a method and the settings of its training for each."""
        if not self.stages:
            return teaching.build(self._or_default(self.members))
        return [(name, made, stages.over(self.train, own, name)) for name, made, own in self._planned()]

    def build_plan(self) -> Method | Procedure:
        """What an engine runs: the method, or a procedure that plays the stages."""
        if self.stages:
            return stages.Stages(self._planned())
        made = self.build_method()
        assert not isinstance(made, list)
        return made

    def _planned(self) -> list[tuple[str, Method | Procedure, dict[str, Any]]]:
        found = []
        for stage in self.stages:
            made = teaching.build(self._or_default(stage.method), f"stages.{stage.name}.method")
            found.append((stage.name, made, stage.train or {}))
        return found

    def _or_default(self, members: list[teaching.Member]) -> list[teaching.Member]:
        """The task's default where no method is named; the first time it is said."""
        if members:
            return members
        chosen = building.method(self._use(), teacher=self.teacher is not None)
        why = f"the default for {self._use()} with a teacher" if self.teacher else "since there is no teacher"
        said = f"method: {chosen}, {why}"
        self.notices += [said] if said not in self.notices else []
        return teaching.members(chosen)


def _teacher(keys: Any) -> TeacherKeys | MixtureKeys | None:
    if keys is None:
        return None
    if isinstance(keys, Mapping) and "members" in keys:
        return validated(MixtureKeys, keys, "teacher")
    return validated(networks.kind_of(keys), keys, "teacher")


def _sum(members: Sequence[teaching.Member]) -> str:
    return " + ".join(teaching.name(member) for member in members) or "run"


def _mark(value: Any) -> Any:
    """What the text does not say of live objects: weights, and the bytes of data."""
    if isinstance(value, Mapping):
        return {str(key): _mark(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(entry) for entry in value]
    if isinstance(value, Actor) and value.source.spec is None:
        return fingerprint(value.source.model)
    if isinstance(value, nn.Module) and not isinstance(value, Method):
        return fingerprint(value)
    return value.fingerprint if isinstance(value, Data) else None


@cache
def _defaults() -> dict[str, Any]:
    return Recipe({}).tree()
