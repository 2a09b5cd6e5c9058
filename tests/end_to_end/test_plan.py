"""`limbeck plan`: exact where it can be, linear where it must be, and nothing left behind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck import RecipeError, Student, Teacher, plan
from limbeck.planning import Plan

KEYS = {
    *("fits", "memory_gb", "hours", "disk_gb", "usd", "advice", "notes", "on", "recipe", "method", "limits"),
    *("parameters", "memory", "time", "disk", "stages", "inference"),
}


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


@pytest.fixture
def made(project) -> Plan:
    return plan("kd.yaml")


def test_counts_and_bytes_are_exact(made):
    import tiny_models

    student, teacher = (tiny_models.Net(inputs=n) for n in (4, 7))
    own, theirs = (sum(p.numel() for p in m.parameters()) for m in (student, teacher))
    assert made.details["parameters"] == {"student": own, "teacher": theirs, "method": 0, "learning": own}
    memory = made.details["memory"]
    assert memory["student"] == memory["gradients"] == 4 * own
    assert memory["teacher"] == 4 * theirs
    counters = 4 * len(list(student.parameters()))  # Adam counts its steps, a number for each tensor
    assert memory["optimizer"] == 2 * 4 * own + counters
    assert memory["batch"] == 16 * (4 * 4 + 4 * 3 + 8 + 8 + 8)  # x, a, label, id, view_seed
    parts = sum(value for name, value in memory.items() if name not in ("total", "pieces"))
    assert parts == pytest.approx(memory["total"])
    assert made.memory_gb == memory["total"] / 1e9
    inference = made.details["inference"]
    assert inference["student"]["parameters"] == own
    assert inference["times_less"]["bytes"] == theirs / own


def test_sgd_keeps_one_moment_or_none(project):
    plain = plan("kd.yaml", "train.optimizer=sgd", "train.steps=2").details["memory"]
    assert plain["optimizer"] == 0
    heavy = plan("kd.yaml", "train.optimizer={use: sgd, momentum: 0.9}", "train.steps=2", "train.ema=0.9")
    assert heavy.details["memory"]["optimizer"] == heavy.details["memory"]["student"]
    assert heavy.details["memory"]["ema"] == heavy.details["memory"]["student"]


def test_two_pieces_keep_half(project):
    one, two = (plan("kd.yaml", f"train.micro_batch={rows}", "train.steps=3").details for rows in (16, 8))
    assert two["stages"][0]["pieces"] == 2
    assert 2 * two["memory"]["activations"] - one["memory"]["activations"] == 4  # the cross-entropy's count, one number
    assert two["memory"]["student"] == one["memory"]["student"]


def test_the_length_of_a_run_is_in_steps_and_not_in_what_was_rehearsed(project):
    short = plan("kd.yaml", "train.steps=300").details["stages"][0]
    long = plan("kd.yaml", "train.steps=3000000").details["stages"][0]
    assert (short["steps"], long["steps"]) == (300, 3000000)
    assert long["rehearsed_steps"] <= 10_000
    assert long["seconds"] > 1000 * short["step_s"]
    epochs = plan("kd.yaml", "train.epochs=7").details["stages"][0]
    assert (epochs["steps"], epochs["epochs"]) == (7 * 6, 7)


def test_nothing_is_left_behind_and_chance_is_as_it_was(project):
    before = files(project)
    temporary = set(Path("/tmp").glob("limbeck-plan-*"))
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = (torch.rand(3), random.random(), np.random.rand())
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    plan("mst.yaml", "train.steps=2")
    found = (torch.rand(3), random.random(), np.random.rand())
    assert torch.equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    assert files(project) == before
    assert set(Path("/tmp").glob("limbeck-plan-*")) == temporary


def test_live_networks_are_not_trained(project):
    import tiny_models

    student, teacher = tiny_models.Net(inputs=4), tiny_models.Net(inputs=7)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (student, teacher)]
    keys = {"student": Student(student, view="x"), "teacher": Teacher(teacher, view=["x", "a"])}
    made = plan(data="tiny_data:paired", method="kd", train={"steps": 3, "batch_size": 16}, control="train", **keys)
    for model, state in zip((student, teacher), before):
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
        assert model.training
        assert not any(p.grad is not None for p in model.parameters())
        assert not model._forward_hooks
    assert made.details["parameters"]["student"] == sum(p.numel() for p in student.parameters())
    assert [stage["control"] for stage in made.details["stages"]] == [False, True]


def test_stages_of_a_procedure_and_the_control(project):
    made = plan("mst.yaml", "train.epochs=4")
    stages = made.details["stages"]
    assert [s["name"] for s in stages] == ["cotraining", "masks", "routing", "distil"]
    assert [s["steps"] for s in stages] == [6, 6, 24, 24]
    assert [s["control"] for s in stages] == [False, False, False, True]
    assert stages[1]["parameters"]["method"] == stages[1]["parameters"]["learning"] > 0
    assert any("estimated" in note and "routing 24" in note for note in made.notes)
    shares = made.details["time"]["shares"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["teacher"] > 0
    assert all(0 <= share <= 1 for share in shares.values())


def test_terms_are_named(made):
    terms, shares = made.details["time"]["terms"], made.details["time"]["shares"]
    assert list(terms) == ["kl"]
    assert 0 < terms["kl"] <= shares["method"]


def test_a_plan_that_does_not_fit_ends_with_3_and_says_what_to_change(project, cli):
    code, out, _ = cli("plan", "kd.yaml", "limit.memory_gb=0.001", "train.steps=2")
    assert code == 3
    assert "DOES NOT FIT" in out
    assert "change: " in out
    code, out, _ = cli("plan", "kd.yaml", "limit.hours=0.1", "train.steps=100000000", "--json")
    told = json.loads(out)
    assert code == 3
    assert not told["fits"]
    broken = [limit for limit in told["limits"] if not limit["held"]]
    assert [limit["what"] for limit in broken] == ["hours"]
    assert any(sentence.startswith("train.steps=") for sentence in told["advice"])


def test_disk_and_money_are_limits_too(project):
    assert plan("kd.yaml", "limit.disk_gb=1e-6", "train.steps=2").advice
    priced = plan("kd.yaml", "limit.usd=1e-9", "train.steps=2", price=3600.0)
    assert priced.usd == pytest.approx(priced.hours * 3600)
    assert not priced.fits
    unpriced = plan("kd.yaml", "limit.usd=1e-9", "train.steps=2")
    assert unpriced.fits
    assert unpriced.usd is None
    assert any("not judged" in note for note in unpriced.notes)


def test_json_has_one_shape(project, cli):
    code, out, _ = cli("plan", "kd.yaml", "--json", "train.steps=2")
    told = json.loads(out)
    assert code == 0
    assert told.keys() == KEYS
    assert told["fits"] is True
    assert told["hours"] == pytest.approx(told["time"]["seconds_here"]["total"] / 3600)


def test_on_another_device_memory_is_predicted_and_time_is_not_invented(project):
    made = plan("kd.yaml", "train.steps=3", on="2x24GB")
    assert made.hours is None
    assert made.fits
    assert made.details["time"]["seconds_here"]["total"] > 0
    assert any("not known" in note for note in made.notes)
    fast = plan("kd.yaml", "train.steps=3", on="h100", speed=10)
    assert fast.hours == pytest.approx(fast.details["time"]["seconds_here"]["total"] / 36000)
    with pytest.raises(RecipeError, match="speed"):
        plan("kd.yaml", speed=10)
    with pytest.raises(RecipeError, match="h100"):
        plan("kd.yaml", on="h10")


def test_a_batch_that_does_not_fit_elsewhere_is_cut_there_or_advised_to_be(project):
    own = ("train.steps=3", "student.args.width=64", "train.batch_size=96")
    roomy = plan("kd.yaml", *own, on="24GB").details["memory"]
    tight = f"{(roomy['total'] - roomy['activations'] / 2) / 1e9:.9f}GB"
    auto = plan("kd.yaml", *own, on=tight)
    assert auto.fits
    assert (roomy["pieces"], auto.details["memory"]["pieces"]) == (1, 2)
    fixed = plan("kd.yaml", *own, "train.micro_batch=96", on=tight)
    assert not fixed.fits
    assert any(sentence.startswith("train.micro_batch=48:") for sentence in fixed.advice)


def test_the_run_folder_is_as_large_as_was_said(project, cli):
    said = plan("kd.yaml", "train.epochs=2").details["disk"]
    cli("distill", "kd.yaml", "train.epochs=2", "--out", "run")
    there = {path: path.stat().st_size for path in Path("run").rglob("*") if path.is_file()}
    each = [sum(f.stat().st_size for f in folder.iterdir()) for folder in Path("run/checkpoints").iterdir()]
    assert said["checkpoints"] == pytest.approx(3 * max(each), rel=0.01)  # two are kept while the third is written
    students = sum(size for path, size in there.items() if "student" in path.parts)
    assert said["students"] == pytest.approx(students, rel=0.05)
    assert sum(there.values()) <= 1.05 * said["total"]


def test_what_cannot_be_run_cannot_be_planned(project, cli):
    code, _, shown = cli("plan", "kd.yaml", "train.batchsize=3")
    assert code == 2
    assert "batch_size" in shown
    code, _, shown = cli("plan", "kd.yaml", "student.args.inputs=5")
    assert code in (1, 2)
    assert files(project) == {"kd.yaml", "mst.yaml", "tiny_data.py", "tiny_models.py"}
