"""A teacher asked once: from the command line, by several processes, by workers that die, and cut off at any moment."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck import Run
from limbeck.caching import form

SOURCE = str(Path(limbeck.__file__).parents[1])
NOISE = "transforms: [{use: noise, std: 0.5}]"
SEEN = f"teacher.view={{keys: [x, a], {NOISE}}}"
SEEN_TOO = f"student.view={{keys: x, {NOISE}}}"


def start(*words: str) -> subprocess.Popen[str]:
    """The command line in a process of its own: no accelerator, one thread."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-m", "limbeck", *words], env=environment, **pipes)


@pytest.fixture(autouse=True)
def _no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the launched ones see none either


def files(folder: str | Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in Path(folder).iterdir() if not p.name.startswith(".")
    }


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "student" / "model.safetensors")


@pytest.mark.parametrize("seen", [[], [SEEN, SEEN_TOO]], ids=["plain", "augmented"])
def test_a_training_with_the_cache_is_the_training_with_the_teacher(project, cli, seen):
    assert cli("distill", "kd.yaml", *seen, "--out", "online")[0] == 0
    asked = ["kd.yaml", *seen, "cache.dtype=fp32", "cache.views=3"]
    assert cli("cache", *asked, "--out", "answers")[0] == 0
    student = [s for s in seen if s.startswith("student")]
    assert cli("distill", "kd.yaml", *student, "teacher=answers", "--out", "cached")[0] == 0
    online, cached = weights("online"), weights("cached")
    for name in online:
        torch.testing.assert_close(cached[name], online[name], rtol=0, atol=1e-6)
    one, other = Run("online").result, Run("cached").result
    assert other["student"]["metric"] == one["student"]["metric"]
    assert other["teacher"]["metric"] == one["teacher"]["metric"]
    assert (other["teacher"]["name"], other["teacher"]["parameters"]) == ("Net", one["teacher"]["parameters"])
    facts = [json.loads((project / run / "environment.json").read_text()) for run in ("online", "cached")]
    assert facts[0]["teacher_fingerprint.teacher"] == facts[1]["teacher_fingerprint.teacher"]
    code, shown, _ = cli("evaluate", "cached", "--of", "teacher", "--json")
    assert code == 0
    assert json.loads(shown)["metric"] == one["teacher"]["metric"]


def test_fewer_views_come_round_again_and_the_student_is_shown_the_same(project, cli, monkeypatch):
    assert cli("cache", "kd.yaml", SEEN, "cache.views=2", "--out", "answers")[0] == 0
    from limbeck.engine.trainer import Trainer

    seen = []
    real = Trainer._step

    def watch(self, batch, epoch, *rest):
        seen.append((epoch, dict(zip(batch["id"].tolist(), batch["view_seed"].tolist()))))
        real(self, batch, epoch, *rest)

    monkeypatch.setattr(Trainer, "_step", watch)
    assert cli("distill", "kd.yaml", SEEN_TOO, "teacher=answers", "seed=11", "--out", "run")[0] == 0
    epochs = [{}, {}, {}]
    for epoch, seeds in seen:
        epochs[epoch] |= seeds
    assert len(epochs[0]) == 96
    assert epochs[0] == epochs[2]
    assert all(epochs[0][sample] != epochs[1][sample] for sample in epochs[0])


def test_inspect_verifies_and_the_same_command_mends(project, cli):
    code, shown, told = cli("cache", "kd.yaml", "--out", "answers", "--json")
    assert code == 0
    assert told == ""
    facts = json.loads(shown)
    assert facts["answers"] == {"train": 96, "validation": 30, "test": 40}
    assert (facts["status"], facts["checksums"], facts["shards"]) == ("finished", "hold", 3)
    code, shown, _ = cli("inspect", "answers")
    assert code == 0
    assert "96 of train, 30 of validation, 40 of test" in shown
    before = files("answers")
    shard = project / "answers" / "shard-00001.safetensors"
    raw = shard.read_bytes()
    shard.write_bytes(raw[:-9])
    for words in (["inspect", "answers"], ["distill", "kd.yaml", "teacher=answers", "--out", "run"]):
        code, _, told = cli(*words)
        assert code == 2
        assert f"shard-00001.safetensors is cut short: {len(raw) - 9} bytes, written were {len(raw)}" in told
        assert "limbeck cache RECIPE --out answers" in told
    assert not (project / "run").exists()
    shard.write_bytes(raw[:-1] + bytes([raw[-1] ^ 4]))
    code, _, told = cli("inspect", "answers")
    assert code == 2
    assert "holds other bytes than were written (its SHA-256 differs)" in told
    assert cli("cache", "kd.yaml", "--out", "answers")[0] == 0
    assert files("answers") == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["data.args={seed: 1}"], "holds answers about paired"),
        (["method=mst-distill"], "mst-distill works inside the teacher"),
        (["teacher={model: answers, view: a}"], "was shown [x, a]"),
        (["teacher={model: answers, weights: other.safetensors}"], "whose weights are not those of other.safetensors"),
        (["teacher={model: answers, taps: {hint: fc1}}"], "does not hold 'hint' of the teacher; it holds logits"),
        (["student=answers"], "a cache holds a teacher's answers and no network: teacher=answers"),
    ],
)
def test_what_does_not_match_is_refused_before_anything_starts(project, cli, change, told):
    assert cli("cache", "kd.yaml", "--out", "answers")[0] == 0
    code, _, said = cli("distill", "kd.yaml", "teacher=answers", *change, "--out", "run")
    assert code == 2, said
    assert told in " ".join(said.split()).replace("['x', 'a']", "[x, a]")
    assert not (project / "run").exists()


def test_another_teacher_into_the_same_cache_is_refused(project, cli):
    assert cli("cache", "kd.yaml", "--out", "answers")[0] == 0
    before = files("answers")
    code, _, told = cli("cache", "kd.yaml", "seed=4", "--out", "answers")
    assert code == 2
    assert "holds the answers to another question: teacher.fingerprint.teacher" in told
    assert files("answers") == before
    assert "needs a folder" in cli("cache", "kd.yaml")[2]


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(project, cli, monkeypatch):
    assert cli("cache", "kd.yaml", "--out", "whole")[0] == 0
    real, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 4:
            raise OSError(28, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(form.os, "replace", full)
    code, _, told = cli("cache", "kd.yaml", "--out", "answers")
    assert code == 1
    assert "A file could not be written" in told
    assert "The same command then goes on" in told
    assert cli("cache", "kd.yaml", "--out", "answers")[0] == 0
    assert files("answers") == files("whole")


SLOW = """
import time
import tiny_models


class Slow(tiny_models.Net):
    def forward(self, *signals):
        time.sleep(0.02)
        return super().forward(*signals)
"""


def test_killed_and_started_again_it_ends_with_the_same_bytes(project, cli):
    (project / "slow.py").write_text(SLOW)
    words = ["cache", "kd.yaml", "teacher.model=slow:Slow", SEEN, "cache.views=3"]
    assert cli(*words, "--out", "whole")[0] == 0
    killed = start(*words, "--out", "answers")
    clock = time.monotonic()
    while not list((project / "answers").glob("shard-*")):
        assert time.monotonic() - clock < 60
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not form.read(project / "answers")["complete"]
    code, _, told = cli("distill", "kd.yaml", "teacher=answers", "--out", "run")
    assert code == 2
    assert "answers is not finished. Go on with: limbeck cache RECIPE --out answers" in told
    assert "is not finished" in cli("inspect", "answers")[1]
    assert cli(*words, "--out", "answers")[0] == 0
    assert files("answers") == files("whole")


def test_two_processes_write_what_one_writes(project, cli):
    words = ["cache", "kd.yaml", SEEN, "cache.views=3"]
    launched = start(*words, "--gpus", "2", "--out", "both", "--json")
    assert cli(*words, "--out", "alone")[0] == 0
    out, err = launched.communicate(timeout=120)
    assert launched.returncode == 0, err
    assert json.loads(out)["shards"] == 5  # one process speaks
    assert files("both") == files("alone")
    assert "not both" in cli(*words, "--gpus", "2", "--ray", "local", "--out", "x")[2]


MORTAL = """
import os
from pathlib import Path

import tiny_models


class Mortal(tiny_models.Net):
    def forward(self, *signals):
        if os.environ.get("FIRST", str(os.getpid())) != str(os.getpid()):
            died = Path(__file__).with_name("died")
            if len(signals[0]) > 2 and not died.exists():
                died.touch()
                os._exit(1)
        return super().forward(*signals)
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (limbeck[cluster])")
def test_workers_of_ray_write_what_one_process_writes_also_when_one_dies(project, cli, monkeypatch):
    (project / "mortal.py").write_text(MORTAL)
    monkeypatch.setenv("FIRST", str(os.getpid()))
    words = ["cache", "kd.yaml", "teacher.model=mortal:Mortal", SEEN, "cache.views=3"]
    assert cli(*words, "--out", "alone")[0] == 0
    assert not (project / "died").exists()
    code, _, told = cli(*words, "--out", "many", "--ray", "local:2")
    assert code == 0, told
    assert "2 workers of Ray ask for 5 shards" in told
    assert (project / "died").exists()
    assert files("many") == files("alone")


def test_without_ray_it_is_said_how_to_get_it(project, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, told = cli("cache", "kd.yaml", "--out", "answers", "--ray", "local")
    assert code == 2
    assert "pip install 'limbeck[cluster]'" in told
    shutil.rmtree(project / "answers", ignore_errors=True)
