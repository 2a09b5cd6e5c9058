"""What follows from the runs: means, intervals, ranks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.stats import ttest_rel

from limbeck.comparing.figures import Figures, ranks, spread
from limbeck.comparing.plan import Entry, labels


def entry(method, seed, metric, *, problem="", status="finished", data="d", up=True):
    found = {"metric": metric, "of": "accuracy", "higher_is_better": up, "split": "test", "samples": 4}
    found |= {"seconds": 1.0 + seed, "steps": 10, "data": data, "teacher": 0.9}
    name = f"{problem}{method}-{seed}"
    settings = {"method": method, "seed": seed}
    place = {"data.path": problem or "one"}
    return Entry(name, name, "r", settings, method, place, str(seed), status, found=found if metric is not None else {})


def write(folder, name, right, first=0):
    """A run folder in which these samples are right."""
    (folder / name).mkdir()
    result = {"task": {"metric": "accuracy"}}
    (folder / name / "result.json").write_text(json.dumps(result))
    target = torch.zeros(len(right), dtype=torch.long)
    logits = torch.tensor([[1.0, 0.0] if one else [0.0, 1.0] for one in right])
    ids = torch.arange(first, first + len(right))
    save_file({"student.logits": logits, "target": target, "id": ids}, folder / name / "predictions.safetensors")


def of(folder, entries, tune=0):
    return Figures(folder).of(entries, labels(entries), tune)


def test_difference_over_seeds_is_the_paired_t_test(tmp_path):
    ours, theirs = [0.7, 0.8, 0.75], [0.6, 0.75, 0.7]
    entries = [entry("kd", s, v) for s, v in enumerate(ours)] + [
        entry("supervised", s, v) for s, v in enumerate(theirs)
    ]
    kd = of(tmp_path, entries)["problems"][0]["arms"][0]
    gap = kd["differences"]["supervised"]["seeds"]
    test = ttest_rel(ours, theirs).confidence_interval()
    assert (gap["low"], gap["high"]) == pytest.approx((test.low, test.high))
    assert kd["differences"]["supervised"]["samples"] is None  # there are no predictions
    assert (kd["cost"], kd["teacher"]) == ({"seconds": 2.0, "steps": 10, "trials": 0, "trial_seconds": None}, 0.9)


def test_seeds_are_paired_by_name_and_missing_ones_left_out(tmp_path):
    entries = [entry("kd", 0, 0.5), entry("kd", 1, 0.9), entry("kd", 2, None, status="failed")]
    entries += [entry("supervised", 2, 0.1), entry("supervised", 1, 0.8), entry("supervised", 0, 0.5)]
    kd = of(tmp_path, entries)["problems"][0]["arms"][0]
    assert kd["differences"]["supervised"]["seeds"]["mean"] == pytest.approx((0.0 + 0.1) / 2)
    assert (kd["finished"], kd["planned"], kd["mean"]) == (2, 3, pytest.approx(0.7))
    assert kd["failed"] == [{"run": "kd-2", "reason": None}]


def test_a_sample_counts_once_however_many_seeds_saw_it(tmp_path):
    right = {"kd": [1, 1, 1, 0], "supervised": [1, 0, 1, 0]}
    entries = []
    for method, answers in right.items():
        for seed in (0, 1, 2):
            write(tmp_path, f"{method}-{seed}", answers)
            entries.append(entry(method, seed, sum(answers) / 4))
    three = of(tmp_path, entries)["problems"][0]["arms"][0]["differences"]["supervised"]["samples"]
    one = of(tmp_path, [e for e in entries if e.seed == "0"])["problems"][0]["arms"][0]["differences"]["supervised"][
        "samples"
    ]
    assert three == one  # three equal answers know no more than one
    assert three["mean"] == 0.25


def test_samples_of_other_draws_are_other_samples(tmp_path):
    entries = []
    for method, answers in {"kd": [1, 1, 1, 0], "supervised": [1, 0, 1, 0]}.items():
        for seed in (0, 1):
            write(tmp_path, f"{method}-{seed}", answers)
            entries.append(entry(method, seed, sum(answers) / 4, data=f"draw {seed}"))
    two = of(tmp_path, entries)["problems"][0]["arms"][0]["differences"]["supervised"]["samples"]
    one = of(tmp_path, entries[::2])["problems"][0]["arms"][0]["differences"]["supervised"]["samples"]
    assert two["mean"] == one["mean"]
    assert two["high"] - two["low"] < one["high"] - one["low"]


def test_answers_to_other_samples_are_not_paired(tmp_path):
    write(tmp_path, "kd-0", [1, 1])
    write(tmp_path, "supervised-0", [1, 0], first=5)
    entries = [entry("kd", 0, 1.0), entry("supervised", 0, 0.5)]
    assert of(tmp_path, entries)["problems"][0]["arms"][0]["differences"]["supervised"]["samples"] is None


def test_ranks_by_hand():
    assert ranks([0.9, 0.5, 0.7]) == [1, 3, 2]
    assert ranks([0.9, 0.5, 0.7], higher_is_better=False) == [3, 1, 2]
    assert ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1, 2.5, 4]
    assert ranks([None, 0.1, None]) == [2.5, 1, 2.5]


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8), st.booleans())
def test_ranks_add_up_and_failures_are_last(means, up):
    places = ranks(means, up)
    assert sum(places) == pytest.approx(len(means) * (len(means) + 1) / 2)
    failed = [place for place, mean in zip(places, means) if mean is None]
    worked = [place for place, mean in zip(places, means) if mean is not None]
    assert not failed or not worked or min(failed) > max(worked)


def test_mean_ranks_over_problems(tmp_path):
    values = {"a": {"kd": 0.9, "rkd": 0.8, "supervised": 0.7}, "b": {"kd": 0.5, "rkd": 0.6, "supervised": 0.1}}
    entries = [entry(m, 0, v, problem=p) for p, arms in values.items() for m, v in arms.items()]
    found = of(tmp_path, entries)
    assert found["ranks"] == [
        {"arm": arm, "rank": rank, "problems": 2} for arm, rank in (("kd", 1.5), ("rkd", 1.5), ("supervised", 3.0))
    ]
    extra = [*entries, entry("nst", 0, 1.0, problem="a")]  # not run on the other: ranked there, not in the mean
    assert of(tmp_path, extra)["ranks"] == found["ranks"]
    assert [row["rank"] for row in of(tmp_path, extra)["problems"][0]["arms"]] == [2, 3, 4, 1]
    waiting = [*entries, entry("nst", 0, None, problem="a", status="planned")]
    assert of(tmp_path, waiting)["ranks"] is None
    assert of(tmp_path, entries[:3])["ranks"] is None


def test_spread():
    assert spread([]) == {"mean": None, "sd": None}
    assert spread([2.0]) == {"mean": 2.0, "sd": None}
    assert spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(math.sqrt(2))}
