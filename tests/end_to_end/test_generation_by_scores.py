"""The family of distribution matching through `limbeck.distill`: three steps each, figures, and a shipped student that samples."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_generation import MEANS, points, recipe

import limbeck
from limbeck.actors import Student

NETWORK = {"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8, "classes": 3}}
FORMULA = {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.1, "labels": [0, 1, 2]}}
CASES = {
    "vsd": (FORMULA, {"guidance": 2.0}, 1),
    "snoopi": (FORMULA, {}, 1),
    "sid": (FORMULA, {}, 1),
    "sim": (FORMULA, {}, 1),
    "gdd": (None, {"innate": r"^inputs\."}, 1),
    "tdm": (FORMULA, {"sampling_steps": 2}, 2),
    "pso": (NETWORK, {"sampling_steps": 2}, 2),
    "dmm": (NETWORK, {"sampling_steps": 2}, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_a_method_runs_from_recipe_to_figures_and_a_student_that_samples(name, tmp_path):
    teacher, options, evaluations = CASES[name]
    keys = recipe(teacher=teacher, method={"use": name} | options, control="none")
    keys["train"] = {"epochs": 1, "batch_size": 16, "lr": 1e-3}
    run = limbeck.distill(**keys, out=tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["method"] == name
    assert result["student"]["figures"]["evaluations"] == evaluations
    assert 0 <= result["student"]["figures"]["mmd"] < float("inf")
    student = Student(run.folder)
    made = student(points()["test"].__getitems__(list(range(24))))["generated"]
    kept = load_file(run.folder / "predictions.safetensors")["student.outputs"][:, :2]
    torch.testing.assert_close(made, kept)


def test_several_denoisers_become_one(tmp_path):
    keys = recipe(teacher={"members": {"ink": NETWORK, "oil": NETWORK}}, method={"use": "dmm"}, control="none")
    keys["train"] = {"epochs": 1, "batch_size": 48, "lr": 1e-3}
    run = limbeck.distill(**keys, out=tmp_path / "run")
    assert Student(run.folder).model.styles.rows.abs().max() > 0
    teacher = json.loads((run.folder / "result.json").read_text())["teacher"]
    assert teacher["samples_of"] == "each row's sample is of one of ink, oil: number (row modulo 2)"
    assert 0 <= teacher["metric"] < float("inf")
