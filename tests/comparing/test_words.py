"""What stands for several values, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import RecipeError
from limbeck.comparing import words
from limbeck.recipe import text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("kd", ["kd"]),
        ("kd,rkd", ["kd", "rkd"]),
        ("kd, rkd", ["kd", "rkd"]),
        ("0..4", [0, 1, 2, 3, 4]),
        ("3..3", [3]),
        ("0..2,7", [0, 1, 2, 7]),
        ("1e-3,0.01", [0.001, 0.01]),
        ("[image, audio]", [["image", "audio"]]),
        ("[image, audio],audio", [["image", "audio"], "audio"]),
        ("{use: kd, temperature: 2},{use: kd, temperature: 4}", [{"use": "kd", "temperature": t} for t in (2, 4)]),
        ("[a, [b, c]],d", [["a", ["b", "c"]], "d"]),
        ("'a,b',c", ["a,b", "c"]),
        ('["x,]", y],z', [["x,]", "y"], "z"]),
        ("it's,not", ["it's", "not"]),
        ("yes,true", ["yes", True]),
        ("my_losses:gap,kd+rkd", ["my_losses:gap", "kd+rkd"]),
        ("../a..b", ["../a..b"]),
        ("", [None]),
    ],
)
def test_commas_outside_brackets_and_ranges_mean_several(typed, meant):
    assert words.values(typed) == meant


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (["seed=4..0"], "counts down; write 0..4"),
        (["method=kd,"], "nothing stands on one side"),
        (["method=,kd"], "nothing stands on one side"),
        (["method=kd", "method=rkd"], "stands twice"),
        (["method"], "is no setting"),
        (["teacher.view=[image"], "expected"),
    ],
)
def test_what_cannot_be_read_is_said(word, told):
    with pytest.raises(RecipeError, match=told):
        words.settings(word)


plain = st.recursive(
    st.integers(0, 99) | st.booleans() | st.text("abc,:'\"[]{} ", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=6,
)


@given(st.lists(plain, min_size=1, max_size=4))
def test_whatever_can_be_phrased_is_read_back(meant):
    typed = ",".join(text.phrase(value) for value in meant)
    assert words.values(typed) == meant


def test_a_word_is_a_setting_or_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.yaml").write_text("")
    assert words.is_setting("method.kd.temperature=2")
    assert words.is_setting("seed,data.args.seed=0..4")
    assert not words.is_setting("a=b.yaml")
    assert not words.is_setting("runs/x=1")
    assert not words.is_setting(tmp_path)
    assert words.settings(["seed,teacher=[0, a],[1, b]", "train.lr=1e-3"]) == {
        "seed,teacher": [[0, "a"], [1, "b"]],
        "train.lr": [0.001],
    }
