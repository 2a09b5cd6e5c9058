"""A finished run's student in another format; a run whose recipe can no longer be read too, as far as that goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck.actors import Student
from limbeck.data.tensors import Data
from limbeck.errors import RecipeError
from limbeck.shipping import exporting, pushing
from limbeck.shipping.package import Rows
from limbeck.tasks import Task


def export(folder: Path, to: str, *, quantize: str = "none", push: str | None = None, data: Any = None) -> Path:
    """See `Run.export`."""
    module = exporting.format_of(to, quantize)
    if push is not None:
        pushing.check(push)
    shipped = folder / "student"
    if not shipped.is_dir():
        raise RecipeError(f"{folder} has no student yet (it did not finish). limbeck resume {folder}")
    result = json.loads(file.read_text()) if (file := folder / "result.json").exists() else None
    student, rows = None, None
    if module.NEEDS_NETWORK:
        student = Student(folder)
        rows = _rows(folder, data, result, student)
    written = exporting.export(
        to, folder / "export", student=student, shipped=shipped, rows=rows, quantize=quantize, result=result
    )
    if push is not None:
        place = written if written.is_dir() else written.parent
        pushing.push(place, push, f"{folder.name}: {place.name}")
    return written


def rehearse(formats: Sequence[str], student: Student, task: Task, data: Data) -> None:
    """Refuse before training what a recipe wants exported after it, and could not be.

    Raises:
        RecipeError: a format cannot hold this student.
    """
    if formats:
        exporting.rehearse(formats, student, Rows(data, task))


def after_training(
    formats: Sequence[str], folder: Path, student: Student, task: Task, data: Data, result: dict[str, Any]
) -> list[str]:
    """What a recipe's `export` asks for; gives sentences about each. One that is refused does not cost the run its result."""
    told = []
    for to in formats:
        try:
            if any(hasattr(parameter, "device_mesh") for parameter in student.model.parameters()):
                raise RecipeError("the student lies in shards over several processes")
            written = exporting.export(
                to,
                folder / "export",
                student=student,
                shipped=folder / "student",
                rows=Rows(data, task),
                result=result,
            )
            checked = exporting.sentences(json.loads((folder / "export" / to / exporting.FILE).read_text()))
            told.append(" ".join([f"exported: {written}", *checked]))
        except RecipeError as error:
            told.append(f"not exported to {to}: {error} Again: limbeck export {folder} --to {to}")
    return told


def _rows(folder: Path, data: Any, result: dict[str, Any] | None, student: Student) -> Rows | None:
    """The run's data and task; None where its recipe cannot be read and no data were named."""
    from limbeck.measuring import on_data, recipe_of

    try:
        recipe = recipe_of(folder, result, data)
        if data is not None:
            recipe = on_data(recipe, data, student.labels)
        found = recipe.build_data()
        return Rows(found, recipe.build_task(found))
    except RecipeError:
        if data is not None:
            raise
        return None
