"""What a format is given: inputs by name, what varies between samples, copies that leave the student alone."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from limbeck import RecipeError, Student, Task, View
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit
from limbeck.shipping import exporting, opened
from limbeck.shipping.graph import Graph
from limbeck.shipping.package import Package, Rows, examples, input_names, inputs, on_cpu, varying


def rows(count: int = 5) -> Rows:
    split = TensorSplit({"x": torch.arange(count * 2.0).reshape(count, 2), "label": torch.arange(count) % 2})
    return Rows(Data({"train": split}, {"x": "", "label": ""}, source="here"), Task("classification"))


class Two(nn.Module):
    def forward(self, x, scale=None):
        return x * scale


def test_inputs_go_by_their_names():
    student = Student(Two(), view=View("x", scale="x"))
    assert input_names(student) == ("x", "scale")
    found = inputs(student, {"x": torch.ones(1, 2)})
    assert found.keys() == {"x", "scale"}


def test_transforms_of_the_view_are_done_before_the_graph():
    view = View("x", transforms={"use": "noise", "std": 1.0, "always": True})
    student = Student(nn.Linear(2, 3), view=view)
    batch = {"x": torch.zeros(4, 2), "id": torch.arange(4)}
    shown = inputs(student, batch)["x"]
    assert not torch.equal(shown, batch["x"])
    graph = Graph(on_cpu(student))
    assert torch.equal(graph(shown)[0], student.model(shown))  # the graph takes what it is given


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [([(1, 3), (1, 3)], []), ([(1, 3), (1, 4)], [1]), ([(1, 3, 5), (1, 4, 6)], [1, 2]), ([(1,)], [])],
)
def test_what_varies_between_samples(shapes, expected):
    assert varying([{"x": torch.zeros(shape)} for shape in shapes]) == {"x": expected}


def test_an_example_has_several_rows_even_of_a_single_sample():
    for count in (1, 3, 9):
        example, vary = examples(Student(nn.Linear(2, 3), view="x"), rows(count))
        assert (example["x"].shape, vary) == ((4, 2), {"x": []})


def test_rows_go_over_a_split_once_in_order():
    for size in (1, 2, 5, 9):
        seen = torch.cat([batch["x"] for batch in rows().batches("train", size)])
        assert torch.equal(seen, rows().data["train"].tensors["x"])
    assert sum(len(batch["x"]) for batch in rows().batches("train", 2, most=3)) == 3
    assert len(rows().batch("train", 4, first=3)["x"]) == 2


def test_the_student_is_left_as_it_is():
    student = Student(nn.Sequential(nn.Linear(2, 3), nn.Dropout()), view="x", taps={"first": "0"})
    package = Package(student, None)
    package.student.model[0].weight.data.zero_()
    assert student.model.training
    assert not package.student.model.training
    assert student.model[0].weight.abs().sum() > 0
    assert package.student.paths == {"first": "0"}


def test_a_graph_answers_with_all_that_a_network_without_logits_gives():
    class Embedder(nn.Module):
        def forward(self, x):
            return {"embedding": x * 2, "note": "text", "hidden": x + 1}

    graph = Graph(Student(Embedder(), view="x"))
    graph.settle({"x": torch.ones(1, 2)})
    assert graph.answers == ("embedding", "hidden")
    assert [value.tolist() for value in graph(torch.ones(1, 2))] == [[[2, 2]], [[2, 2]]]


def test_logits_that_are_tapped_inside_are_the_answer():
    net = nn.Sequential(nn.Linear(2, 3), nn.Softmax(1))
    graph = Graph(Student(net, view="x", taps={"logits": "0"}))
    x = torch.rand(4, 2)
    graph.settle({"x": x})
    assert torch.equal(graph(x)[0], net[0](x))


def test_a_format_needs_data_or_says_so():
    package = Package(Student(nn.Linear(2, 3), view="x"), None)
    with pytest.raises(RecipeError, match="onnx is traced and checked with real samples.*--data FILE"):
        package.needed_rows("onnx")


def test_an_export_without_a_run_has_a_card_too(tmp_path):
    (tmp_path / "student").mkdir()
    (tmp_path / "student/model.safetensors").write_bytes(b"weights")
    written = exporting.export("safetensors", tmp_path / "export", shipped=tmp_path / "student")
    assert written.read_bytes() == b"weights"
    assert "Student(" in (written.parent / "README.md").read_text()
    assert opened.facts_of(written) == json.loads((written.parent / "export.json").read_text())
    with pytest.raises(RecipeError, match="no student folder"):
        exporting.export("safetensors", tmp_path / "export", shipped=tmp_path / "nothing")
    assert written.read_bytes() == b"weights"
    assert opened.facts_of(tmp_path) is None
    with pytest.raises(RecipeError, match="is no export"):
        opened.student(tmp_path)
