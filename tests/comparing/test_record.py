"""The file of a comparison: written, read, and joined with others."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck import Recipe, RecipeError
from limbeck.comparing.figures import Figures
from limbeck.comparing.plan import plan
from limbeck.comparing.record import Record, file_of, is_comparison

BASE = {"task": "classification", "data": "av-digits", "teacher": "torch.nn:Linear", "student": "torch.nn:Linear"}


def record(folder, methods=("supervised", "kd"), seeds=(0, 1), tune=0, done=True, **changed):
    """A comparison without folders, in which everything went well."""
    recipe = Recipe.of(BASE | {"method": "kd", "seed": 9} | changed)
    made = Record.of(folder, plan([recipe], {"method": list(methods), "seed": list(seeds)}), tune)
    for number, entry in enumerate(made.entries if done else []):
        entry.status, entry.found = "finished", found(0.5 + number / 100)
    return made


def found(metric, data="rows"):
    told = {"metric": metric, "of": "accuracy", "higher_is_better": True, "split": "test", "samples": 10}
    return told | {"seconds": 1.0, "steps": 5, "data": data, "teacher": None}


def names(made):
    return [entry.name for entry in made.entries]


def test_what_is_written_is_read_again(tmp_path):
    made = record(tmp_path)
    result = made.save(Figures(tmp_path))
    again = Record.load(tmp_path)
    assert (again.entries, again.recipes, again.tune) == (made.entries, made.recipes, made.tune)
    assert again.result(Figures(tmp_path)) == result
    assert json.loads((tmp_path / "comparison.json").read_text())["status"] == "finished"
    assert "supervised" in (tmp_path / "table.md").read_text()
    assert r"\begin{tabular}" in (tmp_path / "table.tex").read_text()
    assert record(tmp_path, done=False).result(Figures(tmp_path))["status"] == "running"


def test_where_a_comparison_is(tmp_path):
    assert not is_comparison(tmp_path)
    record(tmp_path).save(Figures(tmp_path))
    assert is_comparison(tmp_path)
    assert is_comparison(str(tmp_path / "comparison.json"))
    assert not is_comparison(Recipe.of(BASE))
    assert not is_comparison("kd.yaml")
    assert file_of(tmp_path) == file_of(tmp_path / "comparison.json") == tmp_path / "comparison.json"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"tune": 0, "recipes": {}, "runs": [{"name": "x"}]}'])
def test_a_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(RecipeError, match="cannot be read as a comparison"):
        Record.load(tmp_path)


def test_joining_divided_seeds_gives_the_whole(tmp_path):
    whole, one, other = record(tmp_path, seeds=(0, 1, 2)), record(tmp_path, seeds=(0, 1)), record(tmp_path, seeds=(2,))
    values = {entry.mark: entry.found for entry in whole.entries}
    for entry in [*one.entries, *other.entries]:
        entry.found = values[entry.mark]
    one.join(other)
    assert set(names(one)) == set(names(whole))
    figures = Figures(tmp_path)
    rows, expected = ({r["arm"]: r for r in m.result(figures)["problems"][0]["arms"]} for m in (one, whole))
    assert rows == expected


@given(st.lists(st.integers(0, 3), min_size=1, unique=True), st.lists(st.integers(0, 3), min_size=1, unique=True))
def test_every_run_is_there_once_however_the_parts_overlap(first, second):
    one, other = record(file_of("here"), seeds=first), record(file_of("there"), seeds=second)
    for entry in [*one.entries, *other.entries]:
        entry.found = found(int(entry.seed) / 10)
    one.join(other)
    assert {(e.method, e.seed) for e in one.entries} == {
        (m, str(s)) for m in ("supervised", "kd") for s in {*first, *second}
    }
    assert len(set(names(one))) == len(one.entries) == 2 * len({*first, *second})


def test_a_finished_run_counts_before_one_that_is_not(tmp_path):
    for mine, theirs in (
        ("planned", "finished"),
        ("failed", "finished"),
        ("finished", "failed"),
        ("planned", "failed"),
    ):
        one, other = record(tmp_path, ("kd",), (0,), done=False), record(tmp_path, ("kd",), (0,))
        one.entries[0].status, other.entries[0].status = mine, theirs
        one.entries[0].found, other.entries[0].found = found(0.1), found(0.2)
        one.join(other)
        assert one.entries[0].status == ("finished" if "finished" in (mine, theirs) else "failed")
        assert one.entries[0].found["metric"] == (0.1 if mine == "finished" else 0.2)


def test_two_runs_do_not_share_a_folder(tmp_path):
    one, other = record(tmp_path, seeds=(0,)), record(tmp_path, seeds=(1,))
    for entry in other.entries:
        entry.name = entry.name.replace("-1", "-0")  # as it could be, had the labels been others there
    one.join(other)
    assert names(one) == ["supervised-0", "kd-0", "supervised-1", "kd-1"]


def refused(one, other, told):
    before = copy.deepcopy(one)
    with pytest.raises(RecipeError, match=told):
        one.join(other)
    assert one == before


def test_what_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    here = record(tmp_path / "here")
    there = tmp_path / "there"
    refused(here, record(there, tune=3), "0 tuning trials per arm here and 3 there")
    refused(here, record(there, seeds=(5,), train={"lr": 0.5}), "kd: train.lr is 0.001 here and 0.5 there")
    refused(here, record(there, seeds=(5,), student="torch.nn:Bilinear"), "student.model is")
    other = record(there, ("kd",), (1,))
    other.entries[0].found = found(0.5, data="other rows")
    refused(here, other, "has seen data with the fingerprint rows, and .* other rows")
    tuned, again = record(tmp_path / "here", tune=2), record(there, seeds=(7,), tune=2)
    for entry in tuned.entries:
        entry.tuned = {"train.lr": 0.1}
    for entry in again.entries:
        entry.tuned = {"train.lr": 0.2}
    refused(tuned, again, "Divide a tuned comparison by its arms")
    strange = record(there, ("kd",), (0,))
    strange.entries[0].mark = "of other weights"
    refused(here, strange, "Objects given in Python need the same weights")


def test_the_keys_that_are_varied_may_differ_in_the_recipes(tmp_path):
    here = record(tmp_path / "here", seeds=(0,))
    here.join(record(tmp_path / "there", seeds=(1,), seed=4))
    here.join(record(tmp_path / "elsewhere", seeds=(2,), method={"use": "kd", "temperature": 9.0}))
    assert len(here.entries) == 6
