"""Generators through `limbeck.distill`: a formula teaches a perceptron; figures, control, the shipped student, a restart."""

import json

import pytest
import torch
from safetensors.torch import load_file

import limbeck
from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.errors import RecipeError
from limbeck.models.toy import Mixture

MEANS = [[-1.0, 0.0], [1.0, 0.5], [0.0, 1.0]]


def points():
    """Rows of three classes of points."""
    x, label = Mixture(MEANS, 0.1, labels=[0, 1, 2]).draw(96, torch.Generator().manual_seed(0))
    parts = {"train": (0, 48), "validation": (48, 72), "test": (72, 96)}
    splits = {name: TensorSplit({"x": x[a:b], "label": label[a:b]}, a) for name, (a, b) in parts.items()}
    return Data(splits, {"x": "points", "label": ""}, {"label": ["a", "b", "c"]}, source="points")


def recipe(**changes):
    return {
        "task": "generation",
        "data": points,
        "teacher": {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.1, "labels": [0, 1, 2]}},
        "student": {"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8, "classes": 3}},
        "train": {"epochs": 2, "batch_size": 16, "lr": 1e-3},
        "seed": 1,
    } | changes


@pytest.mark.parametrize(
    "method",
    [
        {"use": "denoising", "guidance": 1.5},
        {"use": "consistency", "discretisation": 4},
        {"use": "dmd2", "critic_steps": 2, "guidance": 1.5, "gan_weight": 1e-2, "sampling_steps": 2},
    ],
    ids=lambda m: m["use"],
)
def test_a_method_runs_from_recipe_to_figures_and_a_student_that_samples(method, tmp_path):
    run = limbeck.distill(**recipe(method=method, control="start"), out=tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    figures = result["student"]["figures"]
    assert result["task"]["metric"] == "mmd"
    assert result["task"]["higher_is_better"] is False
    assert {"mmd", "sliced_wasserstein", "precision", "recall", "diversity", "evaluations"} <= figures.keys()
    assert result["student"]["metric"] == figures["mmd"]
    assert result["teacher"]["metric"] < result["student"]["metric"]
    steps = {"denoising": 39, "consistency": 1, "dmd2": 2}[method["use"]]
    assert figures["evaluations"] == result["control"]["figures"]["evaluations"] == steps
    student = Student(run.folder)
    assert student.model.sampling.evaluations == steps
    batch = points()["test"].__getitems__(list(range(24)))
    kept = load_file(run.folder / "predictions.safetensors")
    made = student(batch)["generated"]
    torch.testing.assert_close(made, kept["student.outputs"][:, :2])


def test_the_control_of_a_generator_learns_from_data_alone(tmp_path):
    run = limbeck.distill(**recipe(method={"use": "dmd2", "critic_steps": 2}, control="train"), out=tmp_path / "run")
    log = [json.loads(line) for line in (run.folder / "control" / "log.jsonl").read_text().splitlines()]
    assert {name for line in log for name in line.get("terms", ())} == {"denoising"}
    result = json.loads((run.folder / "result.json").read_text())
    assert result["control"]["figures"]["evaluations"] == 1


def test_without_a_teacher_it_denoises(tmp_path):
    run = limbeck.distill(**recipe(teacher=None), out=tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["method"] == "denoising"
    assert result["teacher"] is result["control"] is None


def test_a_classifiers_features_are_the_space_of_the_figures(tmp_path, monkeypatch):
    (tmp_path / "judges_of_points.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Judge(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body, self.head = nn.Linear(2, 4), nn.Linear(4, 3)\n"
        "        torch.manual_seed(0)\n"
        "        [nn.init.normal_(p) for p in self.parameters()]\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x).relu())\n"
    )
    monkeypatch.chdir(tmp_path)
    task = {"use": "generation", "classifier": "judges_of_points:Judge"}
    keys = recipe(task=task, method={"use": "dmd2", "critic_steps": 2}, control="none")
    run = limbeck.distill(**keys, out=tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    assert result["task"]["metric"] == "frechet"
    assert 0 <= result["student"]["figures"]["conditional_accuracy"] <= 1
    kept = load_file(run.folder / "predictions.safetensors")
    assert kept["student.outputs"].shape[1] == 4 + 2
    assert kept["target"].shape[1] == 4


def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(RecipeError, match="method=denoising"):
        limbeck.distill(**recipe(method="supervised", teacher=None), out=tmp_path / "one")
    with pytest.raises(RecipeError, match="classifier"):
        limbeck.distill(**recipe(task={"use": "classification", "classifier": "x:y"}), out=tmp_path / "two")
    keys = recipe(method={"use": "dmd2", "guidance": 2.0})
    keys["teacher"] = {"model": "limbeck.models.toy:Mixture", "args": {"means": MEANS, "std": 0.1}}
    keys["student"] = {"model": "limbeck.models.toy:PointDenoiser", "args": {"width": 8}}
    with pytest.raises(RecipeError, match="method.guidance=1"):
        limbeck.distill(**keys, out=tmp_path / "three")
