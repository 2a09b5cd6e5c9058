"""torch.export: a `.pt2` program that `torch.export.load` opens without the student's code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.shipping.checking import Runs, compare, cost_of_int8
from limbeck.shipping.graph import Graph, quietly, trace, traced
from limbeck.shipping.package import Package, examples, on_cpu

NAME = "torch-export"
QUANTIZES = ("none", "int8")
NEEDS_NETWORK = True
FILE = "student.pt2"


def write(package: Package) -> dict[str, Any]:
    """Write `student.pt2` and say what was checked; int8: the weights of linear layers, by torchao.

    Raises:
        RecipeError: the student is no single graph, or the program answers differently.
    """
    program, graph, example = traced(package, NAME)
    rows, path = package.needed_rows(NAME), package.folder / FILE
    told: dict[str, Any] = {"file": FILE, "outputs": list(graph.answers)}
    told["inputs"] = [
        {"name": name, "shape": ["batch", *example[name].shape[1:]], "dtype": str(example[name].dtype)}
        for name in graph.names
    ]
    _save(program, path)
    told["check"] = compare(package.student, _run(path, graph.names), rows, NAME, graph.answers)
    if package.quantize == "int8":
        told["bytes_before"] = path.stat().st_size
        small = on_cpu(package.student)
        small.model = _to_int8(copy.deepcopy(package.student.model))
        again = Graph(small).eval()
        again.answers = graph.answers
        _save(trace(again, example, examples(package.student, rows)[1], NAME), path)
        told["how"] = "weights of linear layers, by torchao"
        told["int8"] = cost_of_int8(package.student, _run(path, graph.names), rows, graph.answers)
    return told


def load(path: Path) -> Any:
    """The program as a function of its columns by position."""
    with quietly():
        return torch.export.load(path).module()


def _save(program: torch.export.ExportedProgram, path: Path) -> None:
    with quietly():
        torch.export.save(program, path)


def _run(path: Path, names: tuple[str, ...]) -> Runs:
    program = load(path)

    def run(columns: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return program(*(columns[name] for name in names))[0]

    return run


def _to_int8(model: nn.Module) -> nn.Module:
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise RecipeError(
            f"{type(model).__name__} has no linear layer, and int8 for torch-export is made of those. "
            "Convolutions: --to onnx --quantize int8"
        )
    try:
        with quietly():
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
            from torchao.utils import unwrap_tensor_subclass
    except ModuleNotFoundError as error:
        raise RecipeError("int8 for torch-export needs torchao: pip install 'limbeck[export]'") from error
    with quietly():
        quantize_(model, Int8WeightOnlyConfig())
        return unwrap_tensor_subclass(model)  # plain tensors inside, so that the program opens without torchao
