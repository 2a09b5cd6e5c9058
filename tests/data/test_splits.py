"""A row's split is a function of its id."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data.splits import assign, place, rows_of, standard


def test_the_place_is_the_hash_and_never_changes() -> None:
    digest = hashlib.sha256(b"0/cat/1.png").hexdigest()
    assert place("cat/1.png") == int(digest[:16], 16) / 2**64
    assert place("cat/1.png", 1) != place("cat/1.png")
    splits = assign([str(row) for row in range(12)], [""] * 12)[0]
    assert [row for row, name in enumerate(splits) if name != "train"] == [3]
    assert splits[3] == "test"


def test_without_words_about_80_10_10() -> None:
    splits, notices = assign([str(row) for row in range(20000)], [""] * 20000)
    shares = {name: len(rows) / 20000 for name, rows in rows_of(splits).items()}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.01)
    assert notices == ["The data name no splits: 80 % train, 10 % validation, 10 % test by a hash of the id."]


@given(st.lists(st.text(), unique=True), st.integers(0, 5), st.randoms())
def test_other_rows_do_not_matter(ids: list[str], seed: int, random: object) -> None:
    whole = dict(zip(ids, assign(ids, [""] * len(ids), seed)[0], strict=True))
    some = [id for id in ids if random.random() < 0.5]  # type: ignore[attr-defined]
    random.shuffle(some)  # type: ignore[attr-defined]
    assert assign(some, [""] * len(some), seed)[0] == [whole[id] for id in some]


def test_a_split_that_nobody_names_is_taken_from_train() -> None:
    ids = [str(row) for row in range(1000)]
    said = ["train"] * 900 + ["test"] * 100
    splits, notices = assign(ids, said)
    assert splits[900:] == ["test"] * 100
    by_hash = assign(ids, [""] * 1000)[0]
    for now, hashed in zip(splits[:900], by_hash[:900], strict=True):
        assert now == ("validation" if hashed == "validation" else "train")
    assert notices == ["The data have no validation split: it is 10 % of the train rows, by a hash of the id."]


def test_named_splits_are_left_alone() -> None:
    said = ["train", "validation", "test", "holdout"]
    splits, notices = assign(list("abcd"), said)
    assert splits == said
    assert notices == ["The split 'holdout' is used only where a recipe names it."]
    assert "Did you mean 'train'?" in assign(["a", "b", "c", "d"], ["train", "validation", "test", "trian"])[1][0]


def test_other_words_for_splits() -> None:
    assert [standard(word) for word in ("Train", "val", "dev", " valid", "testing", "x")] == [
        "train",
        "validation",
        "validation",
        "validation",
        "test",
        "x",
    ]


def test_rows_of_lists_the_usual_splits_also_when_empty() -> None:
    assert rows_of(["test", "x", "test"]) == {"train": [], "validation": [], "test": [0, 2], "x": [1]}
