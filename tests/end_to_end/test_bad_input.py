"""What cannot be run is answered in a sentence, with exit code 2, and nothing is left behind."""

from __future__ import annotations

import fcntl
import json

import pytest
import torch
from safetensors.torch import save_file

CASES = {
    "different numbers of classes": (
        ["kd.yaml", "teacher.args={inputs: 7, classes: 5}"],
        "student logits have 3 classes, teacher logits 5. Give both their names (teacher.labels, student.labels) and they are matched by name, or student.args.classes=5",
    ),
    "a view of a modality the data lack": (
        ["kd.yaml", "teacher.view=[x, audio]"],
        "view 'audio' of the teacher: the batch has x, a, label (columns of paired)",
    ),
    "a tap path that does not exist": (
        ["kd.yaml", "student.taps={hint: fc3}"],
        "tap 'fc3': Net has no such place. Did you mean 'fc",
    ),
    "labels out of range": (
        ["kd.yaml", "student.args={inputs: 4, classes: 2}", "teacher.args={inputs: 7, classes: 2}"],
        "holds labels 0 to 2; the student has 2 classes (0 to 1)",
    ),
    "batch of one with BatchNorm": (
        ["kd.yaml", "student.model=tiny_models:Normed", "train.batch_size=1"],
        "BatchNorm",
    ),
    "unknown key": (["kd.yaml", "train.batchsize=3"], "unknown key 'train.batchsize'. Did you mean 'batch_size'?"),
    "wrong type": (["kd.yaml", "method.temperature=hot"], "temperature"),
    "unknown method": (["kd.yaml", "method=kdd"], "unknown method 'kdd'. Did you mean 'kd'?"),
    "a procedure in a sum": (
        ["kd.yaml", "method=kd+mst-distill"],
        "'mst-distill' is a procedure of its own, not a sum of terms",
    ),
    "whose option": (
        ["kd.yaml", "method=kd+tiny_models:gap", "method.temperature=2"],
        "say whose option it is, e.g. method.kd.temperature=2",
    ),
    "one number from a loss": (
        ["kd.yaml", "method=tiny_models:one_number"],
        "returned one number; a loss returns one value per sample",
    ),
    "a model that is not there": (
        ["kd.yaml", "student.model=tiny_models:Nett"],
        "tiny_models has no Nett. Did you mean 'Net'?",
    ),
    "arguments that do not fit": (
        ["kd.yaml", "student.args={inputs: 4, depth: 3}"],
        "student.args do not fit tiny_models:Net",
    ),
    "weights that are not there": (["kd.yaml", "teacher.weights=nowhere.safetensors"], "there is no such file"),
    "a task that is not there yet": (["kd.yaml", "task=detection"], "not there yet"),
    "an unknown check": (["kd.yaml", "evaluate=[qualty]"], "Did you mean 'quality'?"),
    "a requirement nobody can read": (["kd.yaml", "require=[retention is good]"], "retention is good"),
    "a recipe that does not exist": (["nothing.yaml"], "nothing.yaml"),
    "kd without a teacher": (["kd.yaml", "teacher=null"], "kd needs a teacher"),
    "an unknown optimizer": (["kd.yaml", "train.optimizer=adamv"], "unknown optimizer 'adamv'. Did you mean 'adam"),
    "a trainee nobody trains": (
        ["kd.yaml", "train.trainees={critic: {lr: 1}}"],
        "names 'critic', which this method does not train",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_exit_code_2(name, project, cli):
    words, expected = CASES[name]
    code, _, shown = cli("distill", *words, "--out", "run")
    assert expected in " ".join(shown.split())
    assert code == 2
    assert "Traceback" not in shown


def test_two_processes_told_to_write_one_folder(project, cli):
    (project / "run").mkdir()
    with (project / "run/.lock").open("a+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, shown = cli("distill", "kd.yaml", "--out", "run")
    assert code == 2
    assert "is being written by another run" in shown


def test_another_recipe_into_the_same_folder_is_refused_with_the_difference(project, cli):
    assert cli("distill", "kd.yaml", "--out", "run")[0] == 0
    code, _, shown = cli("distill", "kd.yaml", "train.lr=0.5", "--out", "run")
    assert code == 2
    assert "train.lr" in shown
    assert "0.5" in shown


def test_a_folder_that_is_no_run_folder(project, cli):
    (project / "mine").mkdir()
    (project / "mine/thesis.txt").write_text("years of work")
    for words in (["distill", "kd.yaml", "--out", "mine"], ["resume", "mine"], ["evaluate", "mine"]):
        code, _, shown = cli(*words)
        assert code == 2
        assert "run folder" in shown
    assert (project / "mine/thesis.txt").read_text() == "years of work"


def test_a_recipe_from_a_newer_version(project, cli):
    (project / "new.yaml").write_text("limbeck: 9.9.0\nkd_weight: 1\n" + (project / "kd.yaml").read_text())
    code, _, shown = cli("distill", "new.yaml")
    assert code == 2
    assert "9.9.0" in shown


def test_an_old_run_folder_still_gives_its_figures_and_its_student(project, cli):
    assert cli("distill", "kd.yaml", "--out", "run")[0] == 0
    (project / "run/recipe.yaml").write_text("limbeck: 0.0.1\nkd_weight: 3\n")
    code, out, _ = cli("inspect", "run", "--json")
    assert code == 0
    assert json.loads(out)["status"] == "finished"
    assert cli("export", "run")[0] == 0
    code, _, shown = cli("distill", "run", "--out", "again")
    assert code == 2
    assert "kd_weight" in shown


def test_every_checkpoint_cut_short(project, cli):
    assert cli("distill", "kd.yaml", "--out", "run")[0] == 0
    (project / "run/result.json").unlink()
    for file in (project / "run/checkpoints").glob("*/tensors.safetensors"):
        file.write_bytes(file.read_bytes()[:40])
    code, _, shown = cli("resume", "run")
    assert code == 2
    assert "cut short" in shown
    assert "No whole checkpoint is left" in shown


def test_weights_of_another_network_name_what_does_not_fit(project, cli):
    save_file({"fc1.weight": torch.zeros(8, 7), "stranger": torch.zeros(1)}, project / "w.safetensors")
    code, _, shown = cli("distill", "kd.yaml", "teacher.weights=w.safetensors", "--out", "run")
    assert code == 2
    assert "missing: fc1.bias" in shown
    assert "unknown: stranger" in shown


def test_a_pickle_is_not_opened(project, cli):
    torch.save({"model": object()}, project / "w.pt")
    code, _, shown = cli("distill", "kd.yaml", "teacher.weights=w.pt", "--out", "run")
    assert code == 2
    assert "Convert it once" in shown


def test_an_empty_split(project, cli):
    (project / "data.csv").write_text("v,label,split\n" + "".join(f"{i}.0,{'ab'[i % 2]},train\n" for i in range(8)))
    (project / "empty.py").write_text(
        "import tiny_data, torch\nfrom limbeck.data.tensors import TensorSplit\n\n\ndef paired():\n    data = tiny_data.paired()\n"
        "    data.splits['validation'] = TensorSplit({k: v[:0] for k, v in data.splits['train'].tensors.items() if k != 'id'})\n    return data\n"
    )
    code, _, shown = cli("distill", "kd.yaml", "data=empty:paired", "--out", "run")
    assert code == 2
    assert "the split 'validation'" in shown
    assert "empty" in shown


def test_a_missed_requirement_is_exit_code_3_and_a_held_one_0(project, cli):
    code, out, _ = cli("distill", "kd.yaml", "require=[retention >= 40]", "--out", "no")
    assert code == 3
    assert "MISSED" in out
    assert cli("distill", "kd.yaml", "require=['student.metric >= 0']", "--out", "yes")[0] == 0


def test_a_limit_is_exit_code_4_and_resume_goes_on(project, cli):
    code, _, shown = cli("distill", "kd.yaml", "limit.hours=1e-9", "--out", "run")
    assert code == 4
    assert "limbeck resume" in shown
    assert cli("resume", "run", "limit.hours=1")[0] == 0
    assert cli("distill", "kd.yaml", "--out", "whole")[0] == 0
    assert (project / "run/student/model.safetensors").read_bytes() == (
        project / "whole/student/model.safetensors"
    ).read_bytes()


def test_a_loss_that_is_not_finite_names_part_step_and_samples(project, cli):
    (project / "bad_losses.py").write_text(
        "import torch\n\n\ndef breaks(student, teacher):\n    values = (student - teacher).square().mean(-1)\n"
        "    return torch.where(teacher[:, 0] > teacher[:, 0].median(), values, values * float('inf'))\n"
    )
    code, _, shown = cli("distill", "kd.yaml", "method=bad_losses:breaks", "--out", "run")
    assert code == 1
    assert "step 0: the part 'breaks' of the loss is not finite" in shown
    assert "row numbers" in shown
    assert list((project / "run/checkpoints").glob("step-*"))
    code, _, _ = cli("distill", "kd.yaml", "method=bad_losses:breaks", "--on-nonfinite", "skip", "--out", "skipped")
    assert code == 0
    lines = [json.loads(line) for line in (project / "skipped/log.jsonl").read_text().splitlines()]
    assert lines[-2]["skipped"] > 0 or lines[-1].get("skipped", 0) > 0


def test_verbs_that_come_later_say_so(cli):
    for verb in ("suggest",):
        code, _, shown = cli(verb, "kd.yaml", "--out", "x")
        assert code == 2
        assert "not there yet" in shown


def test_an_unknown_verb_and_an_unknown_flag(cli):
    assert cli("distil", "kd.yaml")[0] == 2
    assert cli("distill", "kd.yaml", "--gpu", "2")[0] == 2


def test_a_full_disk_is_said_in_a_sentence_and_the_same_command_goes_on(project, cli, monkeypatch):
    from limbeck.engine import checkpoint

    real, calls = checkpoint.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    code, _, shown = cli("distill", "kd.yaml", "train.save_every=0", "--out", "run")
    assert code == 1
    assert "the disk is full" in shown
    assert "Earlier checkpoints are untouched" in shown
    assert len(checkpoint.list_all(project / "run/checkpoints")) == 2
    assert cli("distill", "kd.yaml", "train.save_every=0", "--out", "run")[0] == 0
    assert cli("distill", "kd.yaml", "--out", "whole")[0] == 0
    assert (project / "run/student/model.safetensors").read_bytes() == (
        project / "whole/student/model.safetensors"
    ).read_bytes()
