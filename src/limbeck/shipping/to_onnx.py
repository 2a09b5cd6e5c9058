"""ONNX: one file for any runtime, with a batch of any size, checked against PyTorch with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from limbeck.errors import RecipeError
from limbeck.shipping import int8
from limbeck.shipping.checking import compare, cost_of_int8
from limbeck.shipping.graph import quietly, traced
from limbeck.shipping.package import Package
from limbeck.shipping.runtime import OnnxSession

NAME = "onnx"
QUANTIZES = ("none", "int8")
NEEDS_NETWORK = True
FILE = "student.onnx"
_TWO_GB = 2**31 - 2**20  # above, protobuf cannot hold the weights, and they go into a file beside


def write(package: Package) -> dict[str, Any]:
    """Write `student.onnx` and say what was checked.

    Raises:
        RecipeError: a package is missing, the student is no single graph, or the file answers differently.
    """
    _installed()
    _full_precision(package)
    program, graph, _ = traced(package, NAME)
    rows = package.needed_rows(NAME)
    path = package.folder / FILE
    with torch.no_grad(), quietly():
        made = torch.onnx.export(
            program,
            dynamo=True,
            input_names=list(graph.names),
            output_names=list(graph.answers),
            optimize=True,
            verbose=False,
        )
        assert made is not None
        size = sum(p.numel() * p.element_size() for p in graph.parameters())
        made.save(path, external_data=size > _TWO_GB)
    _name_the_batch(path)
    session = OnnxSession(path)
    told: dict[str, Any] = {"file": FILE, "inputs": _inputs(session), "outputs": list(graph.answers)}
    told["check"] = compare(package.student, session.run, rows, NAME, graph.answers)
    if package.quantize == "int8":
        told["bytes_before"] = path.stat().st_size
        told["how"] = int8.quantise(path, package.student, rows)
        session = OnnxSession(path)
        told["int8"] = cost_of_int8(package.student, session.run, rows, graph.answers)
    return told


def _installed() -> None:
    import importlib.util

    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if lacking:
        raise RecipeError(f"export to onnx needs {', '.join(lacking)}: pip install 'limbeck[export]'")


def _full_precision(package: Package) -> None:
    """Half precision to float32: runtimes on CPUs lack half-precision kernels for most layers."""
    for parameter in package.student.model.parameters():
        if parameter.dtype in (torch.float16, torch.bfloat16):
            package.student.model.float()
            return


def _name_the_batch(path: Path) -> None:
    """Call the first dimension of inputs and outputs `batch`, for whoever opens the file.

    Shapes of values in between go: nobody needs them, and int8 tools trip over their names.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    names = {v.type.tensor_type.shape.dim[0].dim_param for v in model.graph.input if v.type.tensor_type.shape.dim}
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names - {""}:
                dimension.dim_param = "batch"
    onnx.save(model, path)


def _inputs(session: OnnxSession) -> list[dict[str, Any]]:
    return [{"name": i.name, "shape": list(i.shape), "dtype": i.type} for i in session.session.get_inputs()]
