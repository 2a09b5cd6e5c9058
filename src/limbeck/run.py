"""A run: the function `distill`, and what its folder holds afterwards."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from limbeck.actors import Student
from limbeck.engine.processes import World
from limbeck.engine.trainer import Observer, Silent
from limbeck.errors import RecipeError
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
        self,
        checks: Sequence[str] | None = None,
        *,
        data: Any = None,
        split: str = "test",
        of: str = "student",
        **options: Any,
    ) -> dict[str, Any]:
        """Measure the student (or `of="teacher"`) on a split of the run's data, or of other data.

        Args:
            checks: what to look at (`fidelity` asks the teacher too); None: what the recipe says.
            data: a path, which is read with the run's columns and classes, or anything else a recipe takes.
            options: of `speed`: `batch_size` (32) beside the batch of one, `repeats` (20).

        Returns:
            An entry as in `result.json`, with `split`, `samples` and `retention`.

        Raises:
            RecipeError: an unknown check, split or column, or other classes than the student's.
        """
        from limbeck.measuring import evaluate

        return evaluate(self.folder, checks, data=data, split=split, of=of, **options)

    def export(self, to: str, *, quantize: str = "none", push: str | None = None, data: Any = None) -> Path:
        """Write the student in another format into `export/<format>/`, and give the path of what was written.

        Args:
            to: `safetensors`, `transformers`, `torch-export` or `onnx`.
            quantize: `none`, or `int8` (onnx, torch-export): what it costs is measured and said on the card.
            push: a hub repository, `owner/name`, to upload the folder to.
            data: what to trace and check with, where the run's recipe can no longer be read.

        Raises:
            RecipeError: no such format, the run has no student, the student is no single graph, or the written file
                answers differently from PyTorch.
        """
        from limbeck.shipping import of_run

        return of_run.export(self.folder, to, quantize=quantize, push=push, data=data)


def _load(source: str | Path) -> Recipe:
    return Recipe.load(source, partial=True)  # what is missing may come with the keys; else building it says so


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
