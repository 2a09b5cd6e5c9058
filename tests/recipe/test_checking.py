"""Sentences about what does not fit."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import RecipeError
from limbeck.recipe.checking import fields, later, validated


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = 0.1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: Annotated[int, Field(ge=1)]
    many: dict[str, Inner] = {}
    one: Inner | None = None
    pieces: int | Literal["auto"] = "auto"
    fast: bool = False


def told(given: object) -> str:
    with pytest.raises(RecipeError) as caught:
        validated(Outer, given, "outer")
    return str(caught.value)


def test_an_unknown_key_is_named_with_its_place_and_the_nearest_key_at_every_depth():
    assert told({"sise": 1}) == "unknown key 'outer.sise'. Did you mean 'size'?"
    assert told({"size": 1, "one": {"rat": 1}}) == "unknown key 'outer.one.rat'. Did you mean 'rate'?"
    assert (
        told({"size": 1, "many": {"critic": {"rat": 1}}}) == "unknown key 'outer.many.critic.rat'. Did you mean 'rate'?"
    )


def test_a_missing_key_a_wrong_type_and_a_wrong_range():
    assert told({}) == "outer needs the key 'size': outer.size=..."
    assert told({"size": "big"}).startswith("outer.size: input should be a valid integer")
    assert told({"size": 0}) == "outer.size: input should be greater than or equal to 1, given was 0."


def test_the_branches_of_a_union_make_one_sentence():
    assert told({"size": 1, "pieces": "x"}) == "outer.pieces: input should be a valid integer or 'auto', given was 'x'."


def test_true_is_no_number():
    assert told({"size": True}) == "outer.size: input should not be a boolean, given was True."
    assert validated(Outer, {"size": 1, "fast": True}, "outer").fast


def test_a_section_that_is_no_mapping():
    assert told([1]) == "outer: needed is a mapping of keys to values, given was [1]."


def test_what_was_given_is_cut_short():
    assert len(told({"size": "x" * 5000})) < 300


def test_two_problems_are_two_sentences():
    assert told({"size": 0, "pieces": "x"}).count("given was") == 2


def test_the_keys_of_a_place():
    assert fields(Outer, []) == ["size", "many", "one", "pieces", "fast"]
    assert fields(Outer, ["many", "anything"]) == fields(Outer, ["one"]) == ["rate"]
    assert fields(Outer, ["size"]) == fields(Outer, ["nowhere", "else"]) == []


def test_a_key_whose_place_is_kept_free():
    assert later({"lora": None, "model": 1}, "student", {"lora": "do without"}) == {"model": 1}
    with pytest.raises(RecipeError, match=r"student\.lora is not there yet; do without\."):
        later({"lora": {"rank": 4}}, "student", {"lora": "do without"})
