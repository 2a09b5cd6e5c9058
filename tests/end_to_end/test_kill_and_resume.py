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
context.set_forkserver_preload(
    ["limbeck.run", "limbeck.report", "limbeck.methods.mst_distill", "torch._dynamo", "sklearn.metrics"]
)


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


def newest(run: Path) -> tuple[str, ...]:
    """The newest checkpoint of the run and of its control."""
    return tuple(
        found[-1].name if (found := checkpoint.list_all(run / part / "checkpoints")) else ""
        for part in (".", "control")
    )


def wait_for(condition, seconds: float = 60) -> None:
    clock = time.monotonic()
    while not condition():
        assert time.monotonic() - clock < seconds
        time.sleep(0.002)


def shipped(run: Path) -> bytes:
    return (run / "student" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("recipe", "epochs"), [("kd.yaml", 20), ("mst.yaml", 8)])
def test_killed_again_and_again_it_ends_with_the_same_bits(project, recipe, epochs):
    whole, budget = project / "whole", f"train.epochs={epochs}"
    process = start(project, recipe, "whole", budget)
    process.join(120)
    assert process.exitcode == 0
    rng, seen, out = random.Random(0), [], project / "killed"
    for _ in range(6):
        process, before = start(project, recipe, "killed", budget, "train.save_every=0"), newest(out)
        wait_for(lambda process=process, before=before: newest(out) != before or process.exitcode is not None)
        process.join(rng.uniform(0.0, 0.25))
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen.append(newest(out))
    assert len(set(seen)) >= 3  # it was killed at different places
    process = start(project, recipe, "killed", budget, "train.save_every=0")
    process.join(120)
    assert process.exitcode == 0
    assert shipped(out) == shipped(whole)
    if recipe == "mst.yaml":
        assert (out / "control/student/model.safetensors").read_bytes() == (
            whole / "control/student/model.safetensors"
        ).read_bytes()
    first, second = ([json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (whole, out))
    timeless = [
        [{k: v for k, v in line.items() if k not in ("samples_per_s", "wait_s")} for line in log]
        for log in (first, second)
    ]
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
    wait_for(lambda: (project / "run/log.jsonl").exists() and (project / "run/log.jsonl").read_text())
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode not in (0, None)
    last = checkpoint.list_all(project / "run/checkpoints")[-1]
    assert int(last.name.removeprefix("step-")) > 0
