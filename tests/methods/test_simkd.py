"""SimKD: equal features give the teacher's own answers, what is refused, and a student that ships without its teacher."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_images import CNN, ViT, data, in_halves, settled, situation
from torch import nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.bridges.reused import ReusedClassifier
from limbeck.engine import validate
from limbeck.engine.course import Course
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.evaluation.measure import measure
from limbeck.method import Stage
from limbeck.methods import find
from limbeck.methods.kd import KD
from limbeck.methods.simkd import SimKD
from limbeck.methods.supervised import Supervised
from limbeck.sources import rebuild
from limbeck.teachers.mixture import Mixture

MODELS = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))
"""


class Wide(nn.Module):
    """Ends as told: `tail` between the map and the classifier, a functional ReLU before it or not."""

    def __init__(self, tail: str = "mean", relu: bool = False, classes: int = 3):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6)
        self.tail, self.relu = tail, relu
        self.fc = nn.Linear(6 * 16 if tail == "flatten" else 6, classes)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = x.relu() if self.relu else x
        pooled = {"mean": lambda: x.mean((2, 3)), "max": lambda: x.amax((2, 3)), "flatten": lambda: x.flatten(1)}
        return self.fc(pooled[self.tail]() if self.tail in pooled else x.square().mean((2, 3)))


def head_of(where) -> ReusedClassifier:
    (found,) = [m for m in where.student.model.modules() if isinstance(m, ReusedClassifier)]
    return found


@pytest.mark.parametrize(
    "teacher",
    [Wide("mean"), Wide("max"), Wide("flatten"), Wide("mean", relu=True), Wide("other"), ViT(), CNN(6)],
    ids=["mean", "max", "flatten", "relu", "neither", "tokens", "cnn"],
)
@pytest.mark.parametrize("student", [Wide, ViT])
def test_equal_features_give_the_teachers_answers(student, teacher):
    """If P(f_s) = f_t everywhere the student's logits are the teacher's, and the loss is 0."""
    where, method = situation(student(), teacher), SimKD()
    batch = settled(method, where)
    assert method.loss(batch).total().item() > 1e-3
    with torch.no_grad():
        theirs = where.teacher(batch)
        target = method.lay(theirs[method.reads])
        target = target.relu() if method.rectify else target
        head_of(where).projector.forward = lambda x: target
        ours = where.student(batch)
        torch.testing.assert_close(ours["logits"], theirs["logits"], rtol=1e-5, atol=1e-6)
        assert method.transfer(ours, theirs, batch).total().item() == 0


@pytest.mark.parametrize(
    ("teacher", "reads", "tail", "rectify", "positive", "size"),
    [
        (Wide("mean"), "norm", "mean", False, False, (4, 4)),
        (Wide("max"), "norm", "max", False, False, (4, 4)),
        (Wide("flatten"), "norm", "flatten", False, False, (4, 4)),
        (Wide("flatten", relu=True), "norm", "flatten", True, True, (4, 4)),
        (Wide("other"), "embedding", "flatten", False, True, (1, 1)),
        (ViT(), "embedding", "flatten", False, False, (1, 1)),
        (CNN(6), "third", "mean", False, True, (2, 2)),
    ],
)
def test_the_way_to_the_teachers_classifier_is_found(teacher, reads, tail, rectify, positive, size):
    where, method = situation(Wide(), teacher), SimKD()
    settled(method, where)
    head = head_of(where)
    assert (method.reads, head.tail, method.rectify, head.projector.resample.size) == (reads, tail, rectify, size)
    assert method.teacher_reads() == {reads}
    assert isinstance(head.projector.steps[-1], nn.ReLU) == positive
    assert any("ship with it" in said for said in method.notices)
    assert any("none of mean, max, flatten" in said for said in method.notices) == (
        reads == "embedding" and size == (1, 1) and isinstance(teacher, Wide)
    )


def test_of_two_maps_the_larger_is_pooled():
    """The published rule: a student of 2x2 positions meets the pooled teacher of 4x4, and the other way round."""
    where, method = situation(CNN(4), Wide()), SimKD()
    batch = settled(method, where)
    teacher, student = where.teacher(batch), where.student(batch)
    projected = head_of(where).projector(student["third"])
    assert projected.shape[2:] == (2, 2)
    expected = (projected - nn.functional.avg_pool2d(teacher["norm"], 2)).square().mean()
    torch.testing.assert_close(method.transfer(student, teacher, batch).total(), expected, rtol=1e-4, atol=1e-6)


def test_accuracy_is_then_the_teachers_exactly():
    where, method = situation(), SimKD()
    settled(method, where)
    where.student.model.eval()
    once = validate.batches(where.data["test"], 256, World())
    with torch.no_grad():
        target = where.teacher(next(iter(once())))[method.reads]
    head_of(where).projector.forward = lambda x: target
    top = measure(where.teacher, once, where.task, checks=[], world=World())
    own = measure(where.student, once, where.task, checks=[], world=World())
    assert own.entry["metric"] == top.entry["metric"]


def test_neither_labels_nor_logits_are_used_and_the_classifier_stays_the_teachers():
    where = situation(epochs=2, lr=0.05)
    before = where.teacher.model.fc.weight.clone()
    other = {"label": torch.zeros(24, dtype=torch.int64)}

    def trained(labels):
        here = situation(epochs=2, lr=0.05, select="last")
        here.data.splits["train"].tensors |= labels
        torch.manual_seed(3)
        Course(SimKD(), here).run()
        return here.student.model.state_dict()

    first, second = trained({}), trained(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    Course(SimKD(), where).run()
    assert torch.equal(head_of(where).classifier.weight, before)
    assert torch.equal(where.teacher.model.fc.weight, before)
    assert head_of(where).classifier.weight.data_ptr() != where.teacher.model.fc.weight.data_ptr()


def test_the_gradient_reaches_projector_and_trunk_only():
    where, method = situation(), SimKD()
    batch = settled(method, where)
    method.loss(batch).total().backward()
    for name, p in where.student.model.named_parameters():
        assert (p.grad is None) == name.startswith("fc.classifier")


def test_classes_are_brought_into_the_students_order():
    where = situation(Wide(), Wide())
    where.student.labels, where.teacher.labels = ["c", "a"], ["a", "b", "c"]
    where.student.model.fc = nn.Linear(6, 2)
    where.task.target = "none"
    settled(SimKD(), where)
    expected = where.teacher.model.fc.weight[[2, 0]]
    assert torch.equal(head_of(where).classifier.weight, expected)
    assert not head_of(where).classifier.weight.requires_grad


def test_it_adds_to_kd():
    where, total = situation(), KD() + SimKD()
    batch = settled(total, where)
    assert set(total.loss(batch).parts) == {"kl", "features", "task"}


def test_a_second_stage_goes_on_with_the_same_student():
    where = situation()
    Course([Stage("features", SimKD()), Stage("task", Supervised()), Stage("more", SimKD())], where).run()
    assert len(where.student.source.surgery) == 1
    for teacher in (CNN(6), Wide()):
        other = situation(teacher=teacher)
        other.student = where.student
        if isinstance(teacher, CNN):  # another one of the same shape: its classifier is put in
            settled(SimKD(), other)
            assert torch.equal(head_of(where).classifier.weight, teacher.fc.weight)
        else:
            with pytest.raises(RecipeError, match="the classifier of another teacher"):
                settled(SimKD(), other)


@pytest.mark.parametrize(
    ("student", "teacher", "options", "told"),
    [
        (
            CNN(4),
            Mixture({"a": Teacher(CNN(), view="x"), "b": Teacher(CNN(), view="x")}),
            {},
            "given are several teachers",
        ),
        (CNN(4), CNN(6), {"layers": ["first", "second"]}, "method.layers names 2"),
        (CNN(4), Wide(classes=5), {}, "classifier of 5 classes; the student's logits have the shape \\[3\\]"),
        (CNN(4), nn.Sequential(Wide(), nn.LogSoftmax(-1)), {}, "not what its last linear layer 0.fc gives"),
    ],
)
def test_what_does_not_fit_is_refused(student, teacher, options, told):
    where = situation(student, CNN(6) if isinstance(teacher, Mixture) else teacher)
    where.teacher = teacher if isinstance(teacher, Mixture) else where.teacher
    with pytest.raises(RecipeError, match=told):
        settled(SimKD(**options), where)


def test_a_run_in_two_halves_is_the_run(tmp_path):
    whole, halves = in_halves(lambda: (SimKD(), situation(epochs=2)), tmp_path)
    assert whole.keys() == halves.keys()
    assert any(name.startswith("fc.projector.") for name in whole)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


LOAD = """
import sys, torch
from limbeck import Student
student = Student(sys.argv[1])
student.model.eval()
x = torch.load(sys.argv[2])
torch.save(student({"x": x})["logits"], sys.argv[3])
assert "limbeck.methods.simkd" not in sys.modules
"""


def test_what_ships_is_loaded_in_another_process_without_the_teacher(tmp_path, monkeypatch):
    (tmp_path / "simkd_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    keys = {"task": "classification", "data": data(), "train": {"epochs": 1, "batch_size": 8}}
    student = {"model": "simkd_models:Small", "args": {"width": 5}, "view": "x"}
    run = limbeck.distill(**keys, teacher=Teacher(CNN(6), view="x"), student=student, method="simkd", out="first")
    assert find("simkd") is SimKD
    assert run.result["control"] is not None  # the same student without a teacher has its own classifier
    assert "fc.weight" in load_file("first/control/student/model.safetensors")
    facts = json.loads((tmp_path / "first/student/limbeck.json").read_text())
    assert [done["by"] for done in facts["surgery"]] == ["limbeck.bridges.reused:reuse"]
    x = data()["test"].tensors["x"]
    torch.save(x, "x.pt")
    alone = os.environ | {"PYTHONPATH": str(Path(limbeck.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", LOAD, "first", "x.pt", "found.pt"], check=True, env=alone)
    assert torch.equal(torch.load("found.pt"), run.student.model.eval()(x))
    assert torch.load("found.pt").shape == (9, 3)
    predicted = load_file("first/predictions.safetensors")
    assert any(
        torch.allclose(value, torch.load("found.pt"), atol=1e-5)
        for value in predicted.values()
        if value.shape == (9, 3)
    )

    again = limbeck.distill(
        **keys, teacher=Teacher(CNN(6), view="x"), student="first", method="kd", control="none", out="second"
    )
    (tmp_path / "first").rename(tmp_path / "gone")  # the second student does not live on the folder of the first
    assert again.student.model(x).shape == (9, 3)
    assert json.loads((tmp_path / "second/student/limbeck.json").read_text())["args"] == {"width": 5}


def test_a_student_given_in_python_says_how_it_is_built_again(tmp_path):
    run = limbeck.distill(
        task="classification",
        data=data(),
        teacher=Teacher(CNN(6), view="x"),
        student=Student(CNN(4), view="x"),
        method="simkd",
        train={"epochs": 1, "batch_size": 8},
        control="none",
        out=tmp_path / "run",
    )
    with pytest.raises(RecipeError, match=r"limbeck.sources.rebuild\(model"):
        Student(tmp_path / "run")
    model = CNN(4)
    rebuild(model, run.folder / "student")
    assert model.state_dict().keys() == load_file(run.folder / "student/model.safetensors").keys()
    with pytest.raises(RecipeError, match="cannot be repeated on this Linear"):
        rebuild(nn.Linear(3, 3), run.folder / "student")
