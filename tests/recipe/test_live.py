"""Objects given in Python, in a file."""

from __future__ import annotations

import enum
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data.columns import Image
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.recipe.live import Absent, absent, address, label, revive, spell
from limbeck.schedules import Cosine
from limbeck.views import View


class Colour(enum.StrEnum):
    RED = "red"


def test_a_class_and_a_function_have_an_address(here: Path):
    from my_losses import gap
    from my_models import Small

    assert address(Small) == "my_models:Small"
    assert address(gap) == "my_losses:gap"
    assert address(torch.nn.functional.mse_loss) == "torch.nn.functional:mse_loss"


def test_our_losses_have_one_short_address():
    assert address(kl) == "limbeck.losses:kl"


def test_what_nobody_else_could_import_has_none(here: Path):
    import my_models

    class Local:
        pass

    def renamed() -> None:
        pass

    renamed.__qualname__ = "Small"
    renamed.__module__ = "my_models"
    assert [address(x) for x in (Local, lambda: 0, my_models.finished, renamed, 3)] == [None] * 5


def test_plain_data_stay_and_foreign_numbers_become_plain():
    given = {"a": (1, np.float32(0.5)), "b": np.int64(3), "c": Colour.RED, "d": Path("x/y"), "e": None, "f": True}
    found = spell(given)
    assert found == {"a": [1, 0.5], "b": 3, "c": "red", "d": "x/y", "e": None, "f": True}
    assert [type(found[key]) for key in "bcf"] == [int, str, bool]


def test_views_columns_and_schedules_say_themselves_how_they_are_spelled():
    assert spell(View("image", "audio")) == ["image", "audio"]
    assert spell(Image(size=8)) == {"use": "image", "size": 8, "channels": None, "fit": "stretch"}
    assert spell(Cosine())["use"] == "cosine"


def test_a_function_among_arguments_is_a_note_because_nobody_imports_it_there():
    assert spell({"act": kl}, addresses=False) == {"act": {"live": "kl given in Python"}}
    assert spell(torch.nn.Linear(1, 1)) == {"live": "Linear given in Python"}


def test_a_note_becomes_an_absent_object_and_is_spelled_the_same_again():
    note = {"student": {"model": {"live": label(torch.nn.Linear(1, 1))}, "args": {"live": True}}}
    found = revive(note)
    assert found["student"] == {"model": Absent("Linear given in Python"), "args": {"live": True}}
    assert spell(found) == note
    assert list(absent(found)) == [("student.model", Absent("Linear given in Python"))]


def test_an_absent_object_says_how_to_give_it_again():
    with pytest.raises(RecipeError, match=r"Linear given in Python, at student\.model.*distill\(recipe, student="):
        raise Absent("Linear given in Python").refuse("student.model")
