"""Limbeck: knowledge distillation for any teacher, any student and your data.

    run = limbeck.distill("recipe.yaml", "train.lr=1e-3")
    run.student, run.result

These are all the names one types; everything else is imported by its path, `limbeck.methods.kd.KD`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.actors import Student, Teacher
    from limbeck.caching.filling import cache
    from limbeck.comparing import compare
    from limbeck.data import load_data
    from limbeck.errors import RecipeError
    from limbeck.later import suggest
    from limbeck.method import Card, Method, Procedure, Progress, Stage, Transfer, Update
    from limbeck.objectives import Loss, Objective, Term
    from limbeck.planning import plan
    from limbeck.recipe import Recipe
    from limbeck.run import Run, distill
    from limbeck.tasks import Task
    from limbeck.views import View

    __version__: str

__all__ = [
    "Card",
    "Loss",
    "Method",
    "Objective",
    "Procedure",
    "Progress",
    "Recipe",
    "RecipeError",
    "Run",
    "Stage",
    "Student",
    "Task",
    "Teacher",
    "Term",
    "Transfer",
    "Update",
    "View",
    "cache",
    "compare",
    "distill",
    "load_data",
    "plan",
    "suggest",
]

_HOMES = {
    "limbeck.actors": ("Student", "Teacher"),
    "limbeck.caching.filling": ("cache",),
    "limbeck.comparing": ("compare",),
    "limbeck.data": ("load_data",),
    "limbeck.errors": ("RecipeError",),
    "limbeck.later": ("suggest",),
    "limbeck.method": ("Card", "Method", "Procedure", "Progress", "Stage", "Transfer", "Update"),
    "limbeck.objectives": ("Loss", "Objective", "Term"),
    "limbeck.planning": ("plan",),
    "limbeck.recipe": ("Recipe",),
    "limbeck.run": ("Run", "distill"),
    "limbeck.tasks": ("Task",),
    "limbeck.views": ("View",),
}
_SOURCE_VERSION = "0.1.0"  # of a checkout that is not installed; pyproject.toml has the same
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import limbeck` itself costs next to nothing."""
    if name == "__version__":
        return globals().setdefault(name, _version())
    if name not in _HOME_OF:
        raise AttributeError(f"module 'limbeck' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("limbeck")
    except PackageNotFoundError:
        return _SOURCE_VERSION


def __dir__() -> list[str]:
    return __all__
