"""Pure functions: tensors in, one value per sample, token or pixel out. No state, no modules, nothing detached.

They are called `loss(student, teacher_or_target, *, mask=None, weight=None, **options)`; the exceptions, which look at
a whole batch and give one number, are in `limbeck.losses.balancing`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache

from torch import Tensor

from limbeck.errors import RecipeError, nearest
from limbeck.losses.balancing import balance_cv, balance_kl
from limbeck.losses.classification import binary_cross_entropy, cross_entropy, soft_cross_entropy
from limbeck.losses.divergences import jeffreys, js, kl, reverse_kl
from limbeck.losses.features import cosine, mse, smooth_l1
from limbeck.sources import import_from

__all__ = [
    "balance_cv",
    "balance_kl",
    "binary_cross_entropy",
    "cosine",
    "cross_entropy",
    "find",
    "jeffreys",
    "js",
    "kl",
    "known",
    "mse",
    "reverse_kl",
    "smooth_l1",
    "soft_cross_entropy",
]


@cache
def known() -> dict[str, Callable[..., Tensor]]:
    """Every loss by its name in a recipe: what the files of this package list in their `__all__`."""
    files = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {name.replace("_", "-"): getattr(file, name) for file in files for name in getattr(file, "__all__", ())}


def find(name: str) -> Callable[..., Tensor]:
    """The loss that a recipe means by `name`: one of ours (`reverse-kl` or `reverse_kl`), or `module:function`.

    Raises:
        RecipeError: no such loss (with the nearest name), no such module or function, or it cannot be called.
    """
    if ":" in name:
        function = import_from(name, "loss")
        if not callable(function):
            raise RecipeError(
                f"loss '{name}' is a {type(function).__name__}; needed is a function of student and teacher."
            )
        return function
    if (plain := name.replace("_", "-")) not in known():
        raise RecipeError(f"unknown loss '{name}'. {nearest(name, known())} Your own: module:function.")
    return known()[plain]
