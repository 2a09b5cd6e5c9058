"""transformers: `save_pretrained`, with the tokenizer or processor beside it, for whoever has transformers alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.shipping.checking import compare
from limbeck.shipping.graph import Graph, quietly
from limbeck.shipping.package import Package, on_cpu

NAME = "transformers"
QUANTIZES = ("none",)
NEEDS_NETWORK = True


def check(student: Student) -> None:
    """Refuse a student that is no model of transformers.

    Raises:
        RecipeError: it is none.
    """
    if not _is_theirs(student.model):
        raise RecipeError(
            f"the student is a {type(student.model).__name__}, no model of transformers, so transformers could not open it. "
            "There is: --to onnx, torch-export or safetensors"
        )


def write(package: Package) -> dict[str, Any]:
    """Write the folder, open it again with transformers alone, and (where there are samples) compare the answers.

    Raises:
        RecipeError: the student is no model of transformers.
    """
    student = package.student
    check(student)
    model: Any = student.model
    if student.labels and len(student.labels) == getattr(model.config, "num_labels", 0):
        model.config.id2label = dict(enumerate(student.labels))
        model.config.label2id = {label: i for i, label in enumerate(student.labels)}
    with quietly():
        model.save_pretrained(package.folder)
    told: dict[str, Any] = {"file": "", "outputs": ["logits"]}
    with quietly():
        again = type(model).from_pretrained(package.folder)
    if package.rows is not None:
        graph = Graph(student)
        graph.settle(_first(package))
        other = on_cpu(student)
        other.model = again.eval()
        loaded = Graph(other).eval()
        loaded.answers = graph.answers

        def run(columns: dict[str, Tensor]) -> Tensor:
            return loaded(*(columns[name] for name in loaded.names))[0]

        told["outputs"] = list(graph.answers)
        told["check"] = compare(student, run, package.rows, NAME, graph.answers)
    return told


def _is_theirs(model: nn.Module) -> bool:
    return hasattr(model, "save_pretrained") and type(model).__module__.startswith("transformers.")


def _first(package: Package) -> dict[str, Tensor]:
    from limbeck.shipping.package import inputs

    assert package.rows is not None
    return inputs(package.student, package.rows.batch(package.rows.split, 2))
