"""Reading what a run left: nothing is needed but the result, and what is broken is no reason to fail."""

import json

import pytest
import torch
from safetensors.torch import save_file

from limbeck.errors import RecipeError
from limbeck.report.folder import RunFolder

FILES = ("log.jsonl", "control/log.jsonl", "predictions.safetensors", "samples.safetensors", "findings.json")


def test_a_whole_run(make_run):
    run = RunFolder.read(make_run("mine", classes=3))
    assert (run.name, run.metric, run.higher_is_better) == ("mine", "accuracy", True)
    assert list(run.roles) == ["teacher", "student", "control"]
    assert run.logits("student").shape == (80, 3)
    assert run.logits("student").dtype == torch.float64
    assert run.labels(3) == ["0", "1", "2"]
    assert len(run.log) == 63


def test_only_the_result(make_run):
    run = RunFolder.read(make_run(without=(*FILES, "recipe.yaml", "environment.json", "teacher")))
    assert list(run.roles) == ["student", "control"]
    assert (run.log, run.control_log, run.predictions, run.samples, run.findings) == ([], [], {}, {}, [])
    assert (run.recipe, run.environment) == ("", {})
    assert run.logits("student") is None


def test_names_of_classes_only_where_they_fit(make_run):
    run = RunFolder.read(make_run(labels=["cat", "dog", "owl", "fox"]))
    assert run.labels(4) == ["cat", "dog", "owl", "fox"]
    assert run.labels(2) == ["0", "1"]


@pytest.mark.parametrize("text", [None, "", "{half", "[]", "null"])
def test_a_folder_without_a_readable_result_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(RecipeError, match=r"has no result\.json that can be read"):
        RunFolder.read(tmp_path)


def test_half_a_line_at_the_end_of_a_log_is_left_out(make_run):
    folder = make_run(steps=3)
    (folder / "log.jsonl").write_text('{"step": 1}\n[1]\n{"step": 2}\n{"step": 3, "ter')
    assert [record["step"] for record in RunFolder.read(folder).log] == [1, 2]


def test_findings_that_are_no_findings(make_run):
    folder = make_run()
    (folder / "findings.json").write_text(json.dumps([1, {"kind": "table"}, None]))
    assert RunFolder.read(folder).findings == [{"kind": "table"}]
    (folder / "findings.json").write_text('{"kind": "table"}')
    assert RunFolder.read(folder).findings == []


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        (torch.zeros(3, 2, 4), torch.tensor([0, 1, 0])),
        (torch.zeros(3, 2), torch.tensor([0.0, 1.0, 0.5])),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2])),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1])),
        (torch.zeros(3, 2), torch.tensor([0, 1])),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64)),
    ],
)
def test_answers_that_are_not_one_class_per_sample_are_no_logits(make_run, logits, target):
    folder = make_run()
    save_file({"student.logits": logits, "target": target}, folder / "predictions.safetensors")
    assert RunFolder.read(folder).logits("student") is None
