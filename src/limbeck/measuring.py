"""`limbeck evaluate`: the student of a run, or any exported model, measured on the run's data or on others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.actors import Actor, Student, Teacher
from limbeck.data.tensors import Data
from limbeck.engine import validate
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.evaluation.checks import chosen
from limbeck.evaluation.judged import refuse_unfit
from limbeck.evaluation.measure import Measured, measure
from limbeck.evaluation.retention import retention
from limbeck.evaluation.speculative import unfit
from limbeck.recipe import Recipe
from limbeck.sources import STUDENT_FILE
from limbeck.tasks import Task


@dataclass
class Subject:
    """What is measured: where it lies, how to load it, and the run that it came from, if that is near."""

    place: Path
    run: Path | None
    exported: bool = False

    @classmethod
    def at(cls, place: str | Path) -> Subject:
        """A run folder, a student folder, an exported folder or file, or any model that a student may be.

        Raises:
            RecipeError: nothing is there.
        """
        from limbeck.shipping import opened

        path = Path(place)
        if not path.exists():
            raise RecipeError(f"{place}: there is no such folder or file.")
        if (path / "recipe.yaml").exists():
            return cls(path, path)
        near = next((p for p in list(path.resolve().parents)[:4] if (p / "recipe.yaml").exists()), None)
        exported = opened.facts_of(path) is not None
        if not exported and not any((path / name).exists() for name in (STUDENT_FILE, "config.json", "modules.json")):
            raise RecipeError(
                f"{place} is neither a run folder (recipe.yaml), a student ({STUDENT_FILE}), an export (export.json) nor a "
                "transformers folder (config.json)."
            )
        return cls(path, near, exported)

    def student(self) -> Student:
        """The network."""
        from limbeck.shipping import opened

        return opened.student(self.place) if self.exported else Student(self.place)

    def result(self) -> dict[str, Any] | None:
        """What its run measured."""
        file = self.run / "result.json" if self.run is not None else None
        return json.loads(file.read_text()) if file is not None and file.exists() else None


def evaluate(
    place: str | Path,
    checks: Sequence[str] | None = None,
    *,
    data: Any = None,
    split: str = "test",
    of: str = "student",
    **options: Any,
) -> dict[str, Any]:
    """Measure what lies at `place` on a split of its run's data, or of other data; see `Run.evaluate`."""
    if of not in ("student", "teacher"):
        raise RecipeError(f"of='{of}': measure the 'student' or the 'teacher'.")
    subject = Subject.at(place)
    result = subject.result()
    recipe = recipe_of(subject.run, result, data)
    student = subject.student()
    if data is not None:
        recipe = on_data(recipe, data, student.labels)
    found = recipe.build_data(only=split if data is not None else None)
    task = recipe.build_task(found)
    refuse_other_classes(student, found, task)
    known = {choice["use"]: choice for choice in recipe.evaluate_choices()}
    asked = chosen(list(known.values()) if checks is None else [known.get(name, name) for name in checks], options)
    refuse_unfit(asked, task, found, getattr(student.model, "shape", None))
    teacher = recipe.build_teacher() if of == "teacher" or {"fidelity", "writing", "speculative"} & {*asked} else None
    if teacher is None and of == "teacher":
        raise RecipeError(f"{place} has no teacher to measure.")
    if of == "student" and "speculative" in asked and (why := unfit(student.tokenizer, teacher, task.name)) is not None:
        raise RecipeError(why)
    once = validate.batches(found[split], 256, World())
    if teacher is not None:
        teacher.check_data(found)

    def measured(actor: Actor, **more: Any) -> Measured:
        for member in actor.members.values() if isinstance(actor, Teacher) else [actor]:
            view = member.look_at(found.columns)
            view.check(list(found.columns), member.whose, found.source)
            member.model.eval()
        return measure(actor, once, task, checks=asked.values(), **more)

    top = measured(teacher) if teacher is not None else None
    own = measured(student, against=top, judge=teacher) if of == "student" else top
    assert own is not None
    entry = own.entry | {"split": split, "samples": len(own.target)}
    if of == "student":
        same = result is not None and data is None and result["split"] == split and result["teacher"] is not None
        theirs = top.entry["metric"] if top else result["teacher"]["metric"] if same and result else None
        entry["retention"] = retention(entry["metric"], theirs, higher_is_better=task.higher_is_better)
    return entry


def recipe_of(run: Path | None, result: dict[str, Any] | None, data: Any) -> Recipe:
    """The recipe of a run; of one that cannot be read, or of none, what can be told without it.

    Raises:
        RecipeError: the recipe cannot be read and no data are named.
    """
    if run is not None:
        try:
            return Recipe.load(run / "recipe.yaml", partial=True)
        except RecipeError:
            if data is None:
                raise
    elif data is None:
        raise RecipeError("this lies in no run folder, so nothing tells what data to measure it on: --data FILE")
    keys: dict[str, Any] = {"data": data}
    if result is not None:
        keys["task"] = {"use": result["task"]["name"], "metric": result["task"]["metric"]}
    return Recipe.of(keys)


def on_data(recipe: Recipe, data: Any, labels: Iterable[str] | None) -> Recipe:
    """The recipe on other data: a file is read as the run's own was, its classes numbered as the student knows them."""
    if recipe.data is None or not isinstance(data, (str, Path)) or not Path(data).exists():
        return recipe.with_keys({"data": data})
    keys = recipe.data.tree() | {"path": str(data)}
    if labels and recipe.task.target:
        columns = dict(keys["columns"] or {})
        own = columns.get(recipe.task.target) or {}
        if own.get("use", "label") == "label":
            columns[recipe.task.target] = own | {"use": "label", "names": list(labels)}
            keys["columns"] = columns
    return recipe.with_keys({"data": keys})


def refuse_other_classes(student: Student, found: Data, task: Task) -> None:
    """Figures of classes in another order would mean nothing.

    Raises:
        RecipeError: the data's classes are not the student's.
    """
    theirs = found.labels.get(task.target)
    if student.labels and theirs and theirs != student.labels:
        raise RecipeError(
            f"the classes of {found.source} are {', '.join(theirs)}; the student's are {', '.join(student.labels)}. "
            "Figures need the same classes in the same order."
        )
