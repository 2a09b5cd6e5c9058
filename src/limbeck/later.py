"""Verbs of the public face whose time has not come: asking for one is answered in a sentence."""

from __future__ import annotations

from typing import Any, NoReturn

from limbeck.errors import RecipeError


def suggest(*sources: Any, **keys: Any) -> NoReturn:
    """Which method for this teacher, student and data. Not there yet."""
    raise RecipeError("limbeck.suggest is not there yet. `limbeck methods` lists what each is for.")
