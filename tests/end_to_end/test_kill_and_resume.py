"""A run killed at any moment goes on to the same bits as one that was never stopped."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from limbeck import Run, distill
from limbeck.engine import checkpoint

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["limbeck.run", "limbeck.report", "limbeck.methods.mst_distill", "torchmetrics", "sklearn.metrics"])


def _distill(folder: str, recipe: str, out: str, settings: tuple[str, ...]) -> None:
    import sys

    import torch

    os.chdir(folder)
    sys.path.insert(0, folder)
    torch.set_num_threads(1)
    distill(recipe, *settings, out=out)


def start(folder: Path, recipe: str, out: str, *settings: str):
    process = context.Process(target=_distill, args=(str(folder), recipe, out, settings))
    process.start()
    return process


def shipped(run: Path) -> bytes:
    return (run / "student" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", ["kd.yaml", "mst.yaml"])
def test_killed_again_and_again_it_ends_with_the_same_bits(project, recipe):
    whole = project / "whole"
    process = start(project, recipe, "whole")
    process.join(120)
    assert process.exitcode == 0
    rng, kills, seen = random.Random(0), 0, set()
    out = project / "killed"
    for attempt in range(60):
        process = start(project, recipe, "killed", "train.save_every=0")
        clock = time.monotonic()
        while not (out / "recipe.yaml").exists() and process.is_alive() and time.monotonic() - clock < 60:
            time.sleep(0.005)
        process.join(rng.uniform(0.05, 0.6) * (1 + attempt / 8))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        seen |= {p.name for p in checkpoint.list_all(out / "checkpoints")}
    assert kills >= 3
    assert len(seen) >= 2  # it was killed at different places
    assert shipped(out) == shipped(whole)
    if recipe == "mst.yaml":
        assert (out / "control/student/model.safetensors").read_bytes() == (whole / "control/student/model.safetensors").read_bytes()
    first, second = ([json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (whole, out))
    timeless = [[{k: v for k, v in line.items() if k not in ("samples_per_s", "wait_s")} for line in log] for log in (first, second)]
    assert timeless[0] == timeless[1]


def test_killed_during_a_checkpoint_write_the_earlier_one_counts(project, monkeypatch):
    distill("kd.yaml", out="whole")
    real, calls = checkpoint.save_file, []

    def dies(tensors, path):
        calls.append(path)
        if len(calls) == 4:
            real(tensors, path)
            Path(path).write_bytes(Path(path).read_bytes()[:100])
            raise KeyboardInterrupt
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", dies)
    with pytest.raises(KeyboardInterrupt):
        distill("kd.yaml", "train.save_every=0", out="cut")
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert len(checkpoint.list_all(project / "cut/checkpoints")) == 2
    Run("cut").resume()
    assert shipped(project / "cut") == shipped(project / "whole")


def test_a_checkpoint_cut_short_is_passed_over_with_a_sentence(project):
    distill("kd.yaml", "train.save_every=0", out="run")
    newest = checkpoint.list_all(project / "run/checkpoints")[-1]
    whole = shipped(project / "run")
    (newest / "tensors.safetensors").write_bytes((newest / "tensors.safetensors").read_bytes()[:50])
    (project / "run/result.json").unlink()
    run = Run("run").resume()
    assert any("cut short" in notice and "left aside" in notice for notice in run.result["notices"])
    assert shipped(project / "run") == whole


def test_the_same_command_into_a_finished_folder_returns_at_once(project):
    distill("kd.yaml", out="run")
    before = (project / "run/result.json").stat().st_mtime_ns
    assert distill("kd.yaml", out="run").result["status"] == "finished"
    assert (project / "run/result.json").stat().st_mtime_ns == before


def test_a_longer_budget_goes_on_from_where_the_short_one_ended(project):
    run = distill("kd.yaml", "train.schedule=constant", "train.select=last", out="short")
    longer = run.resume("train.epochs=5")
    assert longer.result["stages"][0]["steps"] == 30
    whole = distill("kd.yaml", "train.schedule=constant", "train.select=last", "train.epochs=5", out="long")
    assert shipped(longer.folder) == shipped(whole.folder)


def test_a_run_is_repeated_from_its_folder(project):
    first = distill("mst.yaml", out="first")
    again = distill(first, out="again")
    assert shipped(again.folder) == shipped(first.folder)
    assert again.result["student"]["figures"] == first.result["student"]["figures"]


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(project):
    process = start(project, "kd.yaml", "run", "train.epochs=4000")
    clock = time.monotonic()
    while not (project / "run/log.jsonl").exists() or not (project / "run/log.jsonl").read_text():
        assert time.monotonic() - clock < 60
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode not in (0, None)
    (newest,) = checkpoint.list_all(project / "run/checkpoints")
    assert int(newest.name.removeprefix("step-")) > 0
