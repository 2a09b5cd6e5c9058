"""Students of transformers from a recipe to a folder that transformers alone opens; teachers whose classes stand in another order."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from saved_models import TEXTS, vit_folder
from torch import nn

from limbeck import RecipeError, Student, Teacher, distill
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit
from limbeck.labels import match
from limbeck.shipping import opened


def pictures(names=("cat", "dog", "fox"), rows: int = 24) -> Data:
    g = torch.Generator().manual_seed(0)

    def part(n, first):
        y = torch.arange(n) % len(names)
        return TensorSplit({"image": torch.rand(n, 3, 8, 8, generator=g), "label": y}, first)

    splits = {"train": part(rows, 0), "validation": part(12, rows), "test": part(18, rows + 12)}
    return Data(splits, {"image": "image, size 8", "label": "label"}, {"label": list(names)}, source="pictures")


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    def forward(self, image):
        return self.net(image)


def test_a_student_of_transformers_ships_as_one(vit, tmp_path):
    from transformers import AutoModelForImageClassification

    run = distill(
        data=pictures(),
        teacher=str(vit),
        student=str(vit),
        method="kd",
        train={"steps": 2, "batch_size": 8},
        control="none",
        out=tmp_path / "run",
    )
    batch = pictures()["test"].__getitems__(list(range(18)))
    student = Student(run.folder)
    student.model.eval()
    written = run.export("transformers", data=pictures())
    assert (written / "preprocessor_config.json").exists()
    again = AutoModelForImageClassification.from_pretrained(written).eval()
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "fox"}
    _, shown = student.shown(batch)
    with torch.no_grad():
        assert torch.equal(again(**shown).logits, student(batch)["logits"])
    facts = opened.facts_of(written)
    assert facts["check"]["largest_error"] == 0
    assert "ViTForImageClassification.from_pretrained" in (written / "README.md").read_text()
    entry = Student(opened.student(written).model, view=facts["view"])
    assert torch.equal(entry(batch)["logits"], student(batch)["logits"])


def test_the_student_folder_outlives_the_folder_it_came_from(vit, tmp_path):
    keys = {"method": "supervised", "train": {"steps": 1, "batch_size": 8}, "control": "none"}
    run = distill(data=pictures(), student=str(vit), out=tmp_path / "run", **keys)
    batch = pictures()["test"].__getitems__([0, 1])
    before = Student(run.folder).model.eval()
    shutil.rmtree(vit)
    after = Student(run.folder)
    assert after.paths["embedding"] == "classifier:input"
    assert after.labels == ["cat", "dog", "fox"]
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(after.model.eval()(x).logits, before(x).logits)
        assert after(batch)["logits"].shape == (2, 3)


def sentences() -> Data:
    class Texts(torch.utils.data.Dataset):
        """Rows whose texts have different lengths."""

        ids = [str(i) for i in range(10)]

        def __len__(self):
            return 10

        def __getitem__(self, i):
            return {key: value[0] for key, value in self.__getitems__([i]).items()}

        def __getitems__(self, places):
            i = torch.as_tensor(places)
            return {"text": [TEXTS[j % 5] for j in i.tolist()], "label": i % 2, "id": i}

    splits = {name: Texts() for name in ("train", "validation", "test")}
    return Data(splits, {"text": "text", "label": "label"}, {"label": ["bad", "good"]}, "f" * 64, "texts")


def test_a_transformer_becomes_onnx_with_its_own_names_and_keeps_its_tokenizer(bert, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    data = sentences()
    run = distill(
        data=data,
        student=str(bert),
        method="supervised",
        train={"steps": 1, "batch_size": 5},
        control="none",
        out=tmp_path / "run",
    )
    written = run.export("onnx", data=data)
    session = onnxruntime.InferenceSession(written)
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert all(isinstance(i.shape[0], str) and isinstance(i.shape[1], str) for i in session.get_inputs())
    student = Student(run.folder)
    student.model.eval()
    for texts in (TEXTS, TEXTS[:1]):
        _, shown = student.shown({"text": texts})
        got = session.run(None, {name: value.numpy() for name, value in shown.items()})[0]
        with torch.no_grad():
            expected = student({"text": texts})["logits"]
        torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-5)
    assert (written.parent / "tokenizer.json").read_bytes() == (bert / "tokenizer.json").read_bytes()
    shutil.rmtree(bert)  # what ships has its own
    for again in (Student(run.folder), opened.student(written)):
        again.model.eval()
        with torch.no_grad():
            torch.testing.assert_close(again({"text": TEXTS[:1]})["logits"], expected, rtol=0, atol=1e-5)


def test_a_teacher_in_another_order_teaches_by_names(tmp_path):
    """The same teacher twice, its classes permuted in the second folder: one student, one retention, to the bit."""
    from transformers import ViTForImageClassification

    names, order = ["cat", "dog", "fox"], [2, 0, 1]
    first = vit_folder(tmp_path / "first", names)
    model = ViTForImageClassification.from_pretrained(first)
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight[order].clone())
        model.classifier.bias.copy_(model.classifier.bias[order].clone())
    model.config.id2label = {i: names[j] for i, j in enumerate(order)}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    second = tmp_path / "second"
    model.save_pretrained(second)
    shutil.copyfile(first / "preprocessor_config.json", second / "preprocessor_config.json")
    assert Teacher(second).labels == ["fox", "cat", "dog"]
    assert match(names, Teacher(second).labels) is not None
    runs = [
        distill(
            data=pictures(),
            teacher=str(place),
            student=f"{__name__}:Tiny",
            method="kd",
            train={"steps": 3, "batch_size": 8},
            control="none",
            out=tmp_path / f"run-{place.name}",
        )
        for place in (first, second)
    ]
    weights = [(run.folder / "student/model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    one, two = (run.result for run in runs)
    assert one["teacher"]["figures"] == pytest.approx(two["teacher"]["figures"])
    assert one["student"]["figures"] == pytest.approx(two["student"]["figures"])
    assert one["retention"] == two["retention"]


def test_a_student_in_another_order_learns_in_that_of_the_data(tmp_path):
    vit = vit_folder(tmp_path / "vit", ["fox", "cat", "dog"])
    run = distill(
        data=pictures(),
        student=str(vit),
        method="supervised",
        train={"steps": 1, "batch_size": 8},
        control="none",
        out=tmp_path / "run",
    )
    assert any("learnt in the order of the data" in note for note in run.result["notices"])
    assert json.loads((run.folder / "student/labels.json").read_text()) == ["cat", "dog", "fox"]
    assert run.evaluate(["quality"], data=pictures())["metric"] == run.result["student"]["metric"]
    written = run.export("transformers", data=pictures())
    assert json.loads((written / "config.json").read_text())["id2label"] == {"0": "cat", "1": "dog", "2": "fox"}


def test_only_models_of_transformers_have_that_form(tmp_path):
    with pytest.raises(RecipeError, match="the student is a Tiny, no model of transformers"):
        distill(data=pictures(), student=Tiny(), method="supervised", export="transformers", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
