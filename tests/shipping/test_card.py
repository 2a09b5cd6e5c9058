"""One text of the card, with the hub's metadata on top or without."""

from __future__ import annotations

import importlib.util
import json

import pytest

from limbeck.shipping import card, student

RESULT = {
    "name": "digits-1",
    "method": "kd + rkd",
    "split": "test",
    "samples": 40,
    "task": {"name": "classification", "metric": "accuracy", "labels": ["red", "green"]},
    "student": {
        "name": "Net",
        "metric": 0.925,
        "parameters": 1390,
        "view": ["x"],
        "figures": {"accuracy": 0.925, "nll": 0.25},
    },
    "teacher": {"name": "Big", "metric": 0.95, "parameters": 139000},
    "control": None,
    "retention": 0.925 / 0.95,
    "command": "limbeck distill kd.yaml",
}


def test_the_text_has_the_figures_of_the_run():
    text = card.body(RESULT, "load()", ["Int8: 0.9250 before, 0.9000 after."])
    for line in (
        "# digits-1",
        "A Net for classification, distilled with Limbeck by kd + rkd.",
        "| this student | 0.9250 | 1,390 |",
        "| teacher | 0.9500 | 139,000 |",
        "Retention (student against teacher): 0.974.",
        "Its classes, in order: red, green.",
        "Int8: 0.9250 before, 0.9000 after.",
        "load()",
        "Made with: `limbeck distill kd.yaml`",
    ):
        assert line in text.splitlines()
    assert "without a teacher" not in text


def test_without_the_hub_the_same_text_stands_alone(tmp_path, monkeypatch):
    student.card(tmp_path, RESULT)
    here = (tmp_path / "README.md").read_text()
    monkeypatch.setattr(card, "_hub", lambda: False)
    student.card(tmp_path, RESULT)
    plain = (tmp_path / "README.md").read_text()
    assert plain.startswith("# digits-1")
    assert f'student = Student("{tmp_path}")' in plain
    if importlib.util.find_spec("huggingface_hub") is not None:
        assert here.startswith("---\n")
        assert here.endswith(plain)


def test_the_metadata_name_the_data_by_its_last_part(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    (tmp_path / "environment.json").write_text(json.dumps({"data": "/home/somebody/private/manifest.csv"}))
    folder = tmp_path / "export/onnx"
    folder.mkdir(parents=True)
    card.write(folder, RESULT, use="load()")
    read = hub.ModelCard.load(folder / "README.md")
    assert "somebody" not in read.content
    assert {r.dataset_name for r in read.data.eval_results} == {"manifest.csv"}
    assert {r.metric_type: r.metric_value for r in read.data.eval_results} == {"accuracy": 0.925, "nll": 0.25}
    assert {"kd", "rkd", "knowledge-distillation"} == set(read.data.tags)


def test_a_hundred_classes_are_named_and_more_are_not():
    many = RESULT | {"task": RESULT["task"] | {"labels": [f"c{i}" for i in range(101)]}}
    text = card.body(many, "load()")
    assert "c99 ..." in text
    assert "c100" not in text
