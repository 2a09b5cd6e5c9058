"""Verbs of the public face whose time has not come: asking for one is answered in a sentence."""

from __future__ import annotations

from typing import Any, NoReturn

from limbeck.errors import RecipeError


def plan(*sources: Any, **keys: Any) -> NoReturn:
    """Does it fit, how long will it take, what will it cost. Not there yet."""
    raise RecipeError("limbeck.plan is not there yet. A short run tells: distill(recipe, 'train.steps=20')")


def suggest(*sources: Any, **keys: Any) -> NoReturn:
    """Which method for this teacher, student and data. Not there yet."""
    raise RecipeError("limbeck.suggest is not there yet. `limbeck methods` lists what each is for.")
