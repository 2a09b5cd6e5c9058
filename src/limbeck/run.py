"""A run: the function `distill`, and what its folder holds afterwards."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from limbeck.actors import Actor, Student, Teacher
from limbeck.engine import validate
from limbeck.engine.processes import World
from limbeck.engine.trainer import Observer, Silent
from limbeck.errors import RecipeError
from limbeck.evaluation.measure import Measured, measure
from limbeck.life import Life
from limbeck.recipe import Recipe, RecipeKeys

Source = Recipe | str | Path


def distill(
    recipe: Source | Run | None = None,
    /,
    *settings: str,
    out: str | Path | None = None,
    observer: Observer | None = None,
    command: str | None = None,
    **keys: Unpack[RecipeKeys],
) -> Run:
    """Train the student that a recipe describes, measure it, and leave a run folder.

    Args:
        recipe: a file, a named recipe, a `Recipe`, a run (which is repeated), or nothing when `keys` say it all.
        settings: changes as on the command line, `"train.lr=1e-4"`.
        out: the run folder. With the same recipe it continues what is there, or returns at once when that is done.
        observer: told of every step; None: silence.
        keys: keys of the recipe.

    Raises:
        RecipeError: this cannot be run; nothing was started.
        Stopped: interrupted, or at a limit; everything is saved and `Run.resume` goes on.
    """
    if isinstance(recipe, Run):
        recipe = recipe.recipe
    if recipe is None:
        resolved = Recipe.of(dict(keys))
        if settings:
            resolved = resolved.with_settings(*settings)
    else:
        resolved = recipe if isinstance(recipe, Recipe) else _load(recipe)
        resolved = resolved.with_keys(dict(keys)).with_settings(*settings)
    folder = Path(out) if out is not None else _free_folder(resolved.name)
    world = World.here()
    folder = Path(world.agree(str(folder)))
    Life(resolved, folder, world, observer or Silent(), command or _command_of_this_process()).live()
    return Run(folder)


class Run:
    """A run folder, finished or not.

    Raises:
        RecipeError: the folder does not exist, or is no run folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise RecipeError(f"{folder}: there is no such folder.")
        if not (self.folder / "recipe.yaml").exists():
            raise RecipeError(
                f"{folder} is not a run folder: it holds no recipe.yaml. Run folders are made by limbeck distill."
            )

    def __repr__(self) -> str:
        return f"Run('{self.folder}')"

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe; places of objects that were given in Python are open."""
        return Recipe.load(self.folder / "recipe.yaml", partial=True)

    @property
    def result(self) -> dict[str, Any]:
        """What `result.json` says.

        Raises:
            RecipeError: the run did not finish.
        """
        path = self.folder / "result.json"
        if not path.exists():
            raise RecipeError(f"{self.folder} has no result yet. limbeck resume {self.folder}")
        return json.loads(path.read_text())

    @property
    def student(self) -> Student:
        """The student that ships, with its weights."""
        return Student(self.folder)

    def resume(self, *settings: str, observer: Observer | None = None) -> Run:
        """Go on from the last checkpoint; only the budget, limits and what is measured or written may be changed.

        Raises:
            RecipeError: a setting that would make it another run.
        """
        allowed = ("train.epochs", "train.steps", "limit", "track", "evaluate", "require", "export")
        for setting in settings:
            key = setting.split("=")[0]
            if not any(key == name or key.startswith(name + ".") for name in allowed):
                raise RecipeError(
                    f"resume cannot change '{key}': that would be another run. It may change {', '.join(allowed)}; else limbeck distill."
                )
        recipe = self.recipe.with_settings(*settings)
        if settings:
            (self.folder / "result.json").unlink(missing_ok=True)
        command = _command_of_this_process()
        Life(recipe, self.folder, World.here(), observer or Silent(), command, changed=bool(settings)).live()
        return self

    def evaluate(
        self, checks: Sequence[str] | None = None, *, data: Any = None, split: str = "test", of: str = "student"
    ) -> dict[str, Any]:
        """Measure the student (or `of="teacher"`) on a split of the run's data, or of other data.

        Args:
            checks: what to look at (`fidelity` asks the teacher too); None: what the recipe says.
            data: a path, which is read with the run's columns and classes, or anything else a recipe takes.

        Returns:
            An entry as in `result.json`, with `split` and `samples`.

        Raises:
            RecipeError: an unknown check, split or column, or other classes than the student's.
        """
        if of not in ("student", "teacher"):
            raise RecipeError(f"of='{of}': measure the 'student' or the 'teacher'.")
        recipe, student = self.recipe, self.student
        if data is not None:
            recipe = _on(recipe, data, student.labels)
        found = recipe.build_data(only=split if data is not None else None)
        task = recipe.build_task(found)
        if student.labels and found.labels.get(task.target, student.labels) != student.labels:
            raise RecipeError(
                f"the classes of {found.source} are {', '.join(found.labels[task.target])}; the student's are {', '.join(student.labels)}. "
                "Figures need the same classes in the same order."
            )
        chosen = list(checks) if checks is not None else [c["use"] for c in recipe.evaluate_choices()]
        teacher = recipe.build_teacher() if of == "teacher" or "fidelity" in chosen else None
        if teacher is None and of == "teacher":
            raise RecipeError(f"{self.folder} has no teacher to measure.")
        once = validate.batches(found[split], 256, World())

        def measured(actor: Actor, **more: Any) -> Measured:
            for member in actor.members.values() if isinstance(actor, Teacher) else [actor]:
                view = member.look_at(found.columns)
                view.check(list(found.columns), member.whose, found.source)
                member.model.eval()
            return measure(actor, once, task, checks=chosen, **more)

        top = measured(teacher) if teacher is not None else None
        entry = measured(student, against=top) if of == "student" else top
        assert entry is not None
        return entry.entry | {"split": split, "samples": len(entry.target)}

    def export(self, to: str, *, quantize: str = "none", push: str | None = None) -> Path:
        """Write the student in another format. `safetensors` is what `student/` holds; others are not there yet."""
        if to != "safetensors" or quantize != "none" or push is not None:
            raise RecipeError(
                f"export to '{to}'{' with quantize or push' if quantize != 'none' or push else ''} is not there yet. There is: safetensors."
            )
        target = self.folder / "export"
        target.mkdir(exist_ok=True)
        copied = target / "student.safetensors"
        shutil.copyfile(self.folder / "student" / "model.safetensors", copied)
        return copied


def _load(source: str | Path) -> Recipe:
    return Recipe.load(source, partial=True)  # what is missing may come with the keys; else building it says so


def _on(recipe: Recipe, data: Any, labels: Sequence[str] | None) -> Recipe:
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


def _free_folder(name: str) -> Path:
    number = 1
    while (Path("runs") / f"{name}-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-{number}"


def _command_of_this_process() -> str:
    import shlex

    if Path(sys.argv[0]).name in ("limbeck", "__main__.py"):
        return shlex.join(["limbeck", *sys.argv[1:]])
    return f"limbeck.distill(...) in {Path(sys.argv[0]).name or 'Python'}"
