"""YAML by the rules of 1.2, written so that readers of 1.1 agree."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.recipe.text import read, write

words = st.text() | st.sampled_from(
    ["yes", "no", "on", "off", "True", "null", "~", "1e-3", "010", "0o7", "12:30", "1_0"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
plain = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


def test_the_example_of_the_interface():
    assert read("{on: 1, a: 1e-3, b: [yes]}", "x") == {"on": 1, "a": 0.001, "b": ["yes"]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("off", "off"),
        ("", None),
        ("~", None),
        ("none", "none"),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-3", -3),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("1.2.3", "1.2.3"),
        ("my_losses:gap", "my_losses:gap"),
        ("retention >= 0.97", "retention >= 0.97"),
        ("[image, 'x y', {a: 1}]", ["image", "x y", {"a": 1}]),
    ],
)
def test_scalars_are_what_version_1_2_says(text: str, value: object):
    found = read(text, "x")
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read():
    assert math.isnan(read(".nan", "x"))


def test_keys_keep_their_words():
    assert list(read("{yes: 1, off: 2, 3: 4}", "x")) == ["yes", "off", 3]


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "a: {lr: 1, lr: 2}\n", "{1: a, 0x1: b}"])
def test_a_key_that_stands_twice_is_refused(text: str):
    with pytest.raises(RecipeError, match="stands twice"):
        read(text, "file.yaml")


def test_the_line_of_a_mistake_is_named():
    with pytest.raises(RecipeError, match=r"^file.yaml line 3: the key 'a' stands twice\.$"):
        read("a: 1\nb: 2\na: 3\n", "file.yaml")


@pytest.mark.parametrize(
    "text", ["a: [1", "a: 'x", "!!python/name:os.system ''", "{[1]: 2}", "\x07", "a: 1\n---\nb: 2"]
)
def test_what_is_no_plain_yaml_is_refused_in_a_sentence(text: str):
    with pytest.raises(RecipeError, match=r"^file.yaml.*\.$"):
        read(text, "file.yaml")


@given(st.dictionaries(words, plain, max_size=4))
def test_what_is_written_is_read_back(data: dict):
    assert read(write(data), "x") == data


@given(st.dictionaries(st.text(min_size=1), words, max_size=4))
def test_readers_of_version_1_1_see_the_same_words(data: dict):
    assert yaml.safe_load(write(data)) == data


def test_order_is_kept_and_leaves_stand_on_one_line():
    assert write({"b": {"use": "kd", "x": 1.0}, "a": {"args": {}, "c": None}}) == (
        "b: {use: kd, x: 1.0}\na:\n  args: {}\n  c: null\n"
    )


def test_an_object_that_stands_twice_is_written_twice():
    shared = ["x"]
    assert write({"a": shared, "b": shared}) == "a: [x]\nb: [x]\n"
