"""Runs taken together over seeds."""

import math

import pytest

from limbeck.report.folder import RunFolder
from limbeck.report.groups import groups


def scored(value, gap, method="kd"):
    def change(result):
        result["student"]["metric"] = value
        result["method"] = method
        result["difference"] = {"mean": gap, "low": gap, "high": gap, "level": 0.95}

    return change


def test_mean_deviation_and_paired_interval_by_hand(make_run):
    found = [scored(0.8, 0.01), scored(0.9, 0.02), scored(0.85, 0.03)]
    (group,) = groups([RunFolder.read(make_run(change=change)) for change in found])
    assert (group.method, group.student, group.teacher) == ("kd", "LeNet5", "Fusion")
    assert group.mean == pytest.approx(0.85)
    assert group.deviation == pytest.approx(0.05)
    assert group.gain.mean == pytest.approx(0.02)
    assert group.gain.high == pytest.approx(0.02 + 4.302652729911275 * 0.01 / math.sqrt(3))


def test_methods_and_models_are_kept_apart(make_run):
    runs = [make_run(change=scored(0.8, 0.1, method)) for method in ("kd", "rkd", "kd")]
    runs.append(make_run(without=("teacher",)))
    found = groups([RunFolder.read(run) for run in runs])
    assert [(group.method, group.teacher, len(group.runs)) for group in found] == [
        ("kd", "Fusion", 2),
        ("rkd", "Fusion", 1),
        ("kd", "None", 1),
    ]
    assert found[1].deviation is None
    assert not found[1].gain.known


def test_without_figures_nothing_is_claimed(make_run):
    (group,) = groups([RunFolder.read(make_run(without=("student", "teacher", "control")))])
    assert (group.mean, group.deviation, group.gain) == (None, None, None)
