"""`limbeck compare` as a stranger types it: what it runs, what it says, and that it can be stopped and joined."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from limbeck import RecipeError, Run, compare, distill
from limbeck.comparing import Comparison, tuning
from limbeck.engine.trainer import Stopped
from limbeck.evaluation import intervals
from limbeck.methods.kd import KD

FAST = ("train.epochs=1", "control=train")


def arms(result, problem=0):
    return {row["arm"]: row for row in result["problems"][problem]["arms"]}


def weights(run):
    return (Path(run) / "student/model.safetensors").read_bytes()


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).glob("*/result.json")}


def hits(run):
    answers = load_file(f"{run}/predictions.safetensors")
    return (answers["student.logits"].argmax(1) == answers["target"]).double()


def test_methods_over_seeds(project):
    found = compare("kd.yaml", "method=supervised,kd", "seed=0..2", *FAST, out="out")
    result = found.result
    rows = arms(result)
    assert (result["status"], list(rows), result["ranks"]) == ("finished", ["supervised", "kd"], None)
    for arm, row in rows.items():
        values = [Run(f"out/{arm}-{seed}").result["student"]["metric"] for seed in range(3)]
        assert list(row["values"].values()) == values
        assert (row["mean"], row["sd"]) == (statistics.fmean(values), statistics.stdev(values))
        assert (row["finished"], row["planned"], row["failed"]) == (3, 3, [])
        assert row["cost"]["steps"] == 6
    assert [run.folder.name for run in found.runs] == [f"{arm}-{seed}" for arm in rows for seed in range(3)]
    by_seed = [rows["kd"]["values"][str(s)] - rows["supervised"]["values"][str(s)] for s in range(3)]
    gap = rows["kd"]["differences"]["supervised"]
    expected = intervals.paired_t(by_seed)
    assert (gap["seeds"]["mean"], gap["seeds"]["low"]) == pytest.approx((expected.mean, expected.low))
    ours, theirs = (sum(hits(f"out/{arm}-{s}") for s in range(3)) / 3 for arm in ("kd", "supervised"))
    expected = intervals.paired_bootstrap(ours, theirs)  # each test sample once, not once per seed
    assert (gap["samples"]["low"], gap["samples"]["high"]) == pytest.approx((expected.low, expected.high))
    assert rows["supervised"]["differences"] == {"supervised": None, "kd": None}
    for file in ("table.md", "table.tex", "report.html"):
        assert (project / "out" / file).stat().st_size > 200
    assert (project / "out/table.md").read_text() == found.table()
    assert "Arms compared" in (project / "out/report.html").read_text()


def test_the_control_is_the_supervised_arm(project):
    compare("kd.yaml", "method=kd,supervised", "seed=0,1", *FAST, out="out")
    for seed in (0, 1):
        assert weights(f"out/kd-{seed}/control") == weights(f"out/supervised-{seed}")
        notices = Run(f"out/kd-{seed}").result["notices"]
        assert any(f"was trained before: out/supervised-{seed}/control" in said for said in notices)
    compare("kd.yaml", "method=kd", "seed=0", *FAST, out="alone")  # not lent: trained there, to the same bits
    assert weights("alone/kd-0/control") == weights("out/supervised-0")


def test_the_same_command_goes_on_and_more_values_are_added(project, cli):
    words = ("compare", "kd.yaml", "train.epochs=1", "--out", "out", "--quiet")
    assert cli(*words, "method=kd", "seed=0..1")[0] == 0
    before = stamps("out")
    assert cli(*words, "method=kd", "seed=0..1")[0] == 0
    assert stamps("out") == before
    code, shown, _ = cli(*words, "method=kd,supervised", "seed=0..2", "--json")
    result = json.loads(shown)
    assert (code, len(result["runs"])) == (0, 6)
    assert {path: stamp for path, stamp in stamps("out").items() if path in before} == before
    assert [run["name"] for run in result["runs"]] == [
        *("kd-0", "kd-1"),
        *("kd-2", "supervised-0", "supervised-1", "supervised-2"),
    ]
    code, _, told = cli("compare", "kd.yaml", "train.epochs=2", "method=kd", "seed=0", "--out", "out", "--quiet")
    assert code == 0  # another value of a key that was given is another arm
    (project / "kd.yaml").write_text((project / "kd.yaml").read_text().replace("lr: 1e-2", "lr: 0.1"))
    code, _, told = cli(*words, "method=kd", "seed=0..1")
    assert code == 2
    assert "train.lr is 0.01 here and 0.1 there" in told


def test_runs_that_fail_are_shown_with_their_reason(project, cli):
    words = ("compare", "kd.yaml", "seed=0,1", "train.epochs=1", "--out", "out")
    code, shown, told = cli(*words, "method=tiny_models:one_number,kd", "--latex", "paper.tex")
    assert code == 0
    assert (project / "paper.tex").read_text() == (project / "out/table.tex").read_text()
    result = json.loads((project / "out/comparison.json").read_text())
    bad, good = arms(result).values()
    assert (bad["finished"], bad["planned"], bad["mean"], bad["rank"], good["rank"]) == (0, 2, None, 2, 1)
    reason = "one_number returned one number; a loss returns one value per sample"
    assert all(reason in failed["reason"] for failed in bad["failed"])
    for text in (shown, told, (project / "out/table.md").read_text()):
        assert reason in " ".join(text.split())
    assert re.search(r"\| failed +\| 0 of 2 \|", (project / "out/table.md").read_text())
    assert "one value per sample" in (project / "out/report.html").read_text()
    mended = (project / "tiny_models.py").read_text().replace(".square().mean()", ".square().mean(-1)")
    (project / "tiny_models.py").write_text(mended)
    import importlib

    import tiny_models

    importlib.reload(tiny_models)
    before = stamps("out")
    assert cli(*words, "method=tiny_models:one_number,kd", "--quiet")[0] == 0
    assert before.items() <= stamps("out").items()
    assert [row["finished"] for row in arms(json.loads((project / "out/comparison.json").read_text())).values()] == [
        2,
        2,
    ]


def test_where_all_fail_the_exit_code_says_so_and_a_mistake_in_the_words_starts_nothing(project, cli, monkeypatch):
    code, shown, _ = cli("compare", "kd.yaml", "method=tiny_models:one_number", "--out", "out")
    assert (code, "failed" in shown) == (1, True)
    for words, told in (
        (["method=kd,kdd"], "Did you mean 'kd'?"),
        (["train.lrr=1,2"], "unknown key 'train.lrr'"),
        (["method=kd,"], "nothing stands on one side"),
        (["nowhere.yaml"], "there is no recipe"),
        (["seed=0", "--tune", "2", "data=tiny_data:unjudged"], "no"),
    ):
        code, _, said = cli("compare", "kd.yaml", *words, "--out", "never")
        assert (code, told in said) == (2, True), said
        assert not (project / "never/comparison.json").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="start one comparison on each"):
        compare("kd.yaml", out="never")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(RecipeError, match="tune=-1"):
        compare("kd.yaml", tune=-1, out="never")
    (project / "full").mkdir()
    (project / "full/mine.txt").write_text("precious")
    code, _, said = cli("compare", "kd.yaml", "--out", "full")
    assert (code, "not empty and no comparison" in said) == (2, True)


def test_any_key_and_objects_can_be_varied(project):
    found = compare(
        "kd.yaml",
        "train.epochs=1",
        vary={"method": [KD(temperature=2.0), "supervised"], "train.lr": [0.01, 0.1]},
        out="out",
    )
    rows = arms(found.result)
    warm = "kd temperature=2.0"
    assert list(rows) == [f"{arm}, train.lr={lr}" for arm in (warm, "supervised") for lr in ("0.01", "0.1")]
    for lr in ("0.01", "0.1"):
        assert rows[f"{warm}, train.lr={lr}"]["differences"]["supervised"]["arm"] == f"supervised, train.lr={lr}"
    page = (project / "out/report.html").read_text()
    assert f"{warm}, train.lr=0.01, seed 3" in re.sub(r"</?bdi[^>]*>", "", page)
    recipe = Run("out/kd-temperature=2.0-train.lr=0.1-3").recipe
    assert (recipe.train.lr, recipe.method["temperature"]) == (0.1, 2.0)


def test_networks_given_in_python_are_not_trained_in_place(project):
    import tiny_models
    import torch

    torch.manual_seed(0)
    student, before = tiny_models.Net(inputs=4), tiny_models.Net(inputs=4)
    before.load_state_dict(student.state_dict())
    method = KD()
    given = {"student": {"model": student, "view": "x"}, "train": {"epochs": 1, "lr": 0.05}}
    compare("kd.yaml", vary={"method": [method, "supervised"], "seed": [0, 1]}, out="out", **given)
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), before.state_dict().values()))
    alone = distill("kd.yaml", "seed=1", method="supervised", out="alone", **given)  # as if it were the only one
    assert weights("out/supervised-1") == weights(alone.folder)
    with pytest.raises(RecipeError, match="cannot be joined: kd-0 has the fingerprint"):
        compare("kd.yaml", vary={"method": [method], "seed": [0]}, out="out", **given)  # the last call has trained it


def test_two_targets_are_two_problems_and_arms_are_ranked_over_them(project):
    spec = "student.view,student.args.inputs=[x, 4],[a, 3]"
    found = compare("kd.yaml", spec, "method=supervised,kd", "seed=0,1", "train.epochs=2", out="out")
    result = found.result
    assert [problem["name"] for problem in result["problems"]] == ["sees x", "sees a"]
    one, other = ({arm: row["rank"] for arm, row in arms(result, i).items()} for i in (0, 1))
    assert {row["arm"]: row["rank"] for row in result["ranks"]} == {arm: (one[arm] + other[arm]) / 2 for arm in one}
    assert "### sees x" in found.table()
    assert "mean rank" in found.table()
    assert {path.name for path in (project / "out").glob("*.html")} == {"report-sees-x.html", "report-sees-a.html"}
    assert Run("out/sees-a-kd-1").result["student"]["view"] == ["a"]


def test_what_does_not_teach_is_run_once_whoever_the_teacher_is(project):
    for name, view, inputs in (("both", "[x, a]", 7), ("other", "a", 3)):
        words = (f"student.view={view}", f"student.args.inputs={inputs}", "method=supervised", "teacher=null")
        distill("kd.yaml", *words, "train.epochs=1", out=f"teachers/{name}")
    words = ("teacher=teachers/both,teachers/other", "method=supervised,kd", "seed=0", "train.epochs=1")
    rows = arms(compare("kd.yaml", *words, out="out").result)
    assert set(rows) == {"supervised", "teacher=teachers/both, kd", "teacher=teachers/other, kd"}
    assert all(row["differences"]["supervised"]["arm"] == "supervised" for arm, row in rows.items() if "kd" in arm)


def test_a_teacher_may_go_with_the_seed(project):
    for seed in (0, 1):
        words = ("student.view=[x, a]", "student.args.inputs=7", "method=supervised", "teacher=null", f"seed={seed}")
        distill("kd.yaml", *words, "train.epochs=1", out=f"teachers/{seed}")
    found = compare("kd.yaml", "seed,teacher=[0, teachers/0],[1, teachers/1]", "train.epochs=1", out="out")
    assert list(arms(found.result)) == ["kd"]
    assert [Run(f"out/kd-{seed}").recipe.teacher.model for seed in (0, 1)] == ["teachers/0", "teachers/1"]


def test_finished_runs_stand_side_by_side_as_they_are(project, cli):
    cli("distill", "kd.yaml", "method=supervised", "--out", "runs/a")
    cli("distill", "kd.yaml", "--out", "runs/b")
    cli("distill", "kd.yaml", "seed=4", "--out", "runs/c")
    found = compare("runs/a", "runs/b", "runs/c", out="out")
    rows = arms(found.result)
    assert list(rows) == ["supervised", "kd"]
    assert list(rows["kd"]["values"].values()) == [Run(f"runs/{r}").result["student"]["metric"] for r in "bc"]
    assert rows["kd"]["differences"]["supervised"]["samples"]["low"] is not None
    assert rows["kd"]["differences"]["supervised"]["seeds"]["low"] is None  # one seed
    assert os.stat("out/kd-3/student/model.safetensors").st_ino == os.stat("runs/b/student/model.safetensors").st_ino
    assert cli("compare", "runs/b", "train.epochs=1", "--out", "again", "--quiet")[0] == 0
    assert Run("again/kd-3").result["cost"]["steps"] == 6  # changed, so trained


def test_comparisons_of_several_machines_are_joined(project, cli):
    words = ("compare", "kd.yaml", "train.epochs=1", "--quiet")
    cli(*words, "method=supervised,kd", "seed=0..1", "--out", "here")
    cli(*words, "method=kd,supervised", "seed=2", "--out", "there")
    cli(*words, "method=supervised,kd", "seed=0..2", "--out", "whole")
    assert cli("compare", "here", "there/comparison.json", "--out", "joined", "--quiet")[0] == 0
    joined, whole = (json.loads((project / f / "comparison.json").read_text()) for f in ("joined", "whole"))
    for arm, row in arms(whole).items():
        own = arms(joined)[arm]
        assert {key: own[key] for key in ("values", "mean", "sd", "differences", "finished")} == {
            key: row[key] for key in ("values", "mean", "sd", "differences", "finished")
        }
    shutil.rmtree("here")
    shutil.rmtree("there")
    before = stamps("joined")
    assert len(before) == 6
    assert cli(*words, "method=supervised,kd", "seed=0..2", "--out", "joined")[0] == 0  # and it goes on as if made here
    assert stamps("joined") == before
    shutil.copy("whole/comparison.json", "alone.json")
    assert cli("compare", "alone.json", "--out", "figures", "--quiet")[0] == 0  # without folders: no samples to draw
    gap = arms(json.loads((project / "figures/comparison.json").read_text()))["kd"]["differences"]["supervised"]
    assert gap["samples"] is None
    assert gap["seeds"] == arms(whole)["kd"]["differences"]["supervised"]["seeds"]


def test_what_cannot_be_joined_is_refused_with_the_difference(project, cli):
    compare("kd.yaml", "seed=0", "train.epochs=1", out="here")
    code, _, told = cli("compare", "here", "kd.yaml", "--out", "joined")
    assert (code, "leave out kd.yaml" in told) == (2, True)
    (project / "kd.yaml").write_text((project / "kd.yaml").read_text().replace("batch_size: 16", "batch_size: 8"))
    compare("kd.yaml", "seed=1", "train.epochs=1", out="there")
    code, _, told = cli("compare", "here", "there", "--out", "joined")
    assert (code, "kd: train.batch_size is 16 here and 8 there" in told) == (2, True)
    assert not (project / "joined").exists()
    (project / "kd.yaml").write_text((project / "kd.yaml").read_text().replace("batch_size: 8", "batch_size: 16"))
    data = (project / "tiny_data.py").read_text()
    # of another length: within one second, Python takes a file of the same length for the one it has compiled
    (project / "tiny_data.py").write_text(data.replace("seed: int = 0", "seed: int = 11"))
    import importlib

    import tiny_data

    importlib.reload(tiny_data)
    compare("kd.yaml", "method=supervised", "seed=0", "train.epochs=1", out="elsewhere")
    code, _, told = cli("compare", "here", "elsewhere", "--out", "joined")
    assert (code, "has seen data with the fingerprint" in told) == (2, True)
    (project / "broken.json").write_text('{"tune": 0}')
    with pytest.raises(RecipeError, match="cannot be read as a comparison"):
        compare("broken.json", out="joined")


SPACE = """
from typing import ClassVar
from limbeck.methods.kd import KD


class Wide(KD):
    tunable: ClassVar = {"temperature": (1.0, 8.0), "weight": (0.5, 2.0)}
"""

WATCHED = """

class Watched(TensorSplit):
    looks = 0

    def __getitems__(self, indices):
        Watched.looks += 1
        return super().__getitems__(indices)


def watched():
    data = paired()
    data.splits["test"] = Watched({k: v for k, v in data.splits["test"].tensors.items() if k != "id"}, 200)
    return data


def unjudged():
    data = paired()
    del data.splits["validation"]
    return data
"""


def test_every_arm_has_the_same_trials_and_none_of_them_sees_the_test_split(project, monkeypatch):
    (project / "wide.py").write_text(SPACE)
    (project / "tiny_data.py").write_text((project / "tiny_data.py").read_text() + WATCHED)
    import tiny_data

    real, looks = tuning.distill, []

    def watching(recipe, **more):
        before = tiny_data.Watched.looks
        run = real(recipe, **more)
        looks.append(tiny_data.Watched.looks - before)
        assert (run.result["split"], run.result["control"]) == ("validation", None)
        return run

    monkeypatch.setattr(tuning, "distill", watching)
    words = ("data=tiny_data:watched", "method=supervised,wide:Wide", "seed=0,1", "train.epochs=1", "control=train")
    found = compare("kd.yaml", *words, tune=4, out="out")
    assert looks == [0] * 8
    assert tiny_data.Watched.looks > 0  # the final runs did look
    for arm, row in arms(found.result).items():
        trials = json.loads((project / f"out/tuning/{arm.replace(':', '-')}/trials.json").read_text())
        assert (len(trials), row["cost"]["trials"]) == (4, 4)
        best = max(trials, key=lambda one: one["value"])
        assert row["tuned"] == best["settings"]
        assert {one["split"] for one in trials} == {"validation"}
        assert trials[0]["settings"]["train.lr"] == 0.01  # the given settings come first
        assert all(0.0025 <= one["settings"]["train.lr"] <= 0.04 for one in trials)
        assert row["cost"]["trial_seconds"] == pytest.approx(sum(one["seconds"] for one in trials))
        runs = [run for run in found.runs if run.folder.name.startswith(arm.replace(":", "-"))]
        assert [run.recipe.train.lr for run in runs] == [best["settings"]["train.lr"]] * 2
    assert set(trials[0]["settings"]) == {"train.lr", "method.temperature", "method.weight"}
    assert "was tuned to" in found.table()
    with pytest.raises(RecipeError, match="4 tuning trials per arm here and 3 there"):
        compare("kd.yaml", *words, tune=3, out="out")
    with pytest.raises(RecipeError, match="judged on the validation split"):
        compare("kd.yaml", "data=tiny_data:unjudged", tune=2, out="other")


def test_a_search_that_is_stopped_goes_on_to_the_same_settings(project, monkeypatch):
    words = ("method=kd", "seed=0", "train.epochs=1")
    whole = compare("kd.yaml", *words, tune=5, out="whole").result["runs"][0]
    real, calls = tuning.distill, []

    def stops(recipe, **more):
        calls.append(recipe)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(recipe, **more)

    monkeypatch.setattr(tuning, "distill", stops)
    with pytest.raises(KeyboardInterrupt):
        compare("kd.yaml", *words, tune=5, out="cut")
    again = compare("kd.yaml", *words, tune=5, out="cut").result["runs"][0]
    assert len(calls) == 3 + 3  # two were known
    assert again["tuned"] == whole["tuned"]
    assert weights("cut/kd-0") == weights("whole/kd-0")


def test_a_stop_is_passed_on_with_what_to_do(project, monkeypatch, cli):
    from limbeck.comparing import running

    def stopped(*given, **more):
        raise Stopped("interrupted", "stopped by Ctrl-C")

    monkeypatch.setattr(running, "distill", stopped)
    code, _, told = cli("compare", "kd.yaml", "--out", "out")
    assert (code, "The same command goes on" in told) == (130, True)
    assert json.loads((project / "out/comparison.json").read_text())["status"] == "running"


context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["limbeck.comparing", "limbeck.methods.kd", "torch._dynamo", "sklearn.metrics"])
LONG = ("method=supervised,kd", "seed=0", "train.epochs=6", "train.save_every=0", "control=train")


def _compare(folder: str, out: str) -> None:
    import sys

    import torch

    os.chdir(folder)
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    compare("kd.yaml", *LONG, out=out)


def test_killed_in_one_run_and_in_the_next_it_goes_on_to_the_same_numbers(project):
    whole = compare("kd.yaml", *LONG, out="whole").result
    for arm in ("supervised", "kd"):
        run = project / f"killed/{arm}-0"
        process = context.Process(target=_compare, args=(str(project), "killed"))
        process.start()
        clock = time.monotonic()
        while process.is_alive() and not list(run.glob("checkpoints/step-00000[2-9]")):
            assert time.monotonic() - clock < 60
            time.sleep(0.002)
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not (run / "result.json").exists()
        stored = {entry["arm"]: entry["status"] for entry in Comparison("killed").result["runs"]}
        assert stored == {"supervised": "finished" if arm == "kd" else "planned", "kd": "planned"}
    before = stamps("killed")
    killed = compare("kd.yaml", *LONG, out="killed").result
    assert before.items() <= stamps("killed").items()
    for arm, row in arms(whole).items():
        assert arms(killed)[arm]["values"] == row["values"]
        assert arms(killed)[arm]["differences"] == row["differences"]
        assert weights(f"killed/{arm}-0") == weights(f"whole/{arm}-0")
