"""`limbeck compare` as a stranger types it: what it runs, what it says, and that it can be stopped and joined."""

from __future__ import annotations

import json
import statistics

from safetensors.torch import load_file

from limbeck import Run, compare

FAST = ("train.epochs=1", "control=train")


def told(folder="out"):
    return json.loads(open(f"{folder}/comparison.json").read())


def arms(result, problem=0):
    return {row["arm"]: row for row in result["problems"][problem]["arms"]}


def test_methods_over_seeds(project):
    found = compare("kd.yaml", "method=supervised,kd", "seed=0..2", *FAST, out="out")
    result = found.result
    print(found.table())
    rows = arms(result)
    assert list(rows) == ["supervised", "kd"]
    for arm, row in rows.items():
        values = [Run(f"out/{arm}-{seed}").result["student"]["metric"] for seed in range(3)]
        assert list(row["values"].values()) == values
        assert row["mean"] == statistics.fmean(values)
        assert row["sd"] == statistics.stdev(values)
    assert load_file("out/supervised-0/student/model.safetensors").keys()


def test_the_control_is_the_supervised_arm(project):
    compare("kd.yaml", "method=kd,supervised", "seed=0,1", *FAST, out="out")
    for seed in (0, 1):
        own = (project / f"out/supervised-{seed}/student/model.safetensors").read_bytes()
        assert (project / f"out/kd-{seed}/control/student/model.safetensors").read_bytes() == own
        notices = Run(f"out/kd-{seed}").result["notices"]
        assert any(f"was trained before: out/supervised-{seed}/control" in said for said in notices)
    compare("kd.yaml", "method=kd", "train.epochs=1", "control=train", "seed=0", out="alone")  # not lent: trained there
    own = (project / "out/supervised-0/student/model.safetensors").read_bytes()
    assert (project / "alone/kd-0/control/student/model.safetensors").read_bytes() == own
