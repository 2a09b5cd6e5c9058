"""Several processes train the student that one trains, and write one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck import Run

SOURCE = str(Path(limbeck.__file__).parents[1])


def environment() -> dict[str, str]:
    """Of a process of its own: no accelerator, one thread, and nothing of a launcher above this one."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    paths = [SOURCE, *filter(None, [kept.get("PYTHONPATH")])]
    return kept | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def start(*words: str) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=environment(), **pipes)


def test_two_processes_are_as_good_as_one(project, cli, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the launched ones see none either
    # The dropout of torch draws by process, so a network with it is another one on two of them.
    (project / "still.py").write_text(
        "import tiny_models\nfrom torch import nn\n\n\nclass Still(tiny_models.Net):\n    def __init__(self, **args):\n"
        "        super().__init__(**args)\n        self.drop = nn.Identity()\n"
    )
    recipe = ["kd.yaml", "student.model=still:Still", "train.epochs=2", "require=['retention >= 40']"]
    launched = start("-m", "limbeck", "distill", *recipe, "--gpus", "2", "--out", "runs/both", "--json")
    assert cli("distill", *recipe, "--out", "runs/alone")[0] == 3
    out, err = launched.communicate(timeout=300)
    assert launched.returncode == 3, err  # the answer is no, also through the launcher
    assert "Traceback" not in err
    result, expected = json.loads(out), Run("runs/alone").result  # one process speaks
    assert result["require"][0]["held"] is False
    assert result["student"]["metric"] == expected["student"]["metric"]
    both, alone = (load_file(project / f"runs/{run}/student/model.safetensors") for run in ("both", "alone"))
    assert both.keys() == alone.keys()
    for key in alone:
        torch.testing.assert_close(both[key], alone[key], rtol=0, atol=1e-5)
    answers, theirs = (load_file(project / f"runs/{run}/predictions.safetensors") for run in ("both", "alone"))
    order, other = answers["id"].argsort(), theirs["id"].argsort()
    assert torch.equal(answers["id"][order], theirs["id"][other])
    assert torch.equal(answers["target"][order], theirs["target"][other])
    torch.testing.assert_close(answers["student.logits"][order], theirs["student.logits"][other], rtol=0, atol=1e-4)
    assert {p.name for p in (project / "runs").iterdir()} == {"alone", "both"}
    lines = [(project / f"runs/{name}/log.jsonl").read_text().splitlines() for name in ("both", "alone")]
    assert len(lines[0]) == len(lines[1])
    assert [p.name for p in sorted((project / "runs/both").iterdir())] == [
        p.name for p in sorted((project / "runs/alone").iterdir())
    ]


@pytest.mark.parametrize("spelling", [["--gpus", "2"], ["--gpus=2"]])
def test_the_flag_is_the_launcher_of_torch(project, cli, monkeypatch, spelling):
    seen = []

    def launch(command, **options):
        seen.append(command)
        Path(options["env"]["LIMBECK_EXIT_CODE"]).write_text("4")
        return subprocess.CompletedProcess(command, 1)

    words = ["distill", "kd.yaml", *spelling, "train.lr=0.1", "--out", "run"]
    monkeypatch.setattr(subprocess, "run", launch)
    monkeypatch.setattr(sys, "argv", ["limbeck", *words])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli(*words)[0] == 4
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    assert seen == [[*torchrun, "-m", "limbeck", "distill", "kd.yaml", "train.lr=0.1", "--out", "run"]]


def test_a_mistake_in_the_words_is_said_once_and_before_anything_starts(project, cli):
    code, _, shown = cli("distill", "kd.yaml", "train.batchsize=3", "--gpus", "2", "--out", "run")
    assert code == 2
    assert "unknown key 'train.batchsize'" in shown
    assert cli("distill", "kd.yaml", "--gpus", "two")[0] == 2
    assert not (project / "run").exists()
