"""Files that answer without the student's code: an ONNX session, a saved program; each as a module that an actor can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.views import View


class OnnxSession:
    """An ONNX file under onnxruntime on the CPU; inputs and answers are tensors."""

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(self, columns: dict[str, Tensor]) -> Tensor:
        """The first answer."""
        return self.all(columns)[0]

    def all(self, columns: dict[str, Tensor]) -> list[Tensor]:
        """Every answer; columns that the graph does not read are left out."""
        wanted = {i.name for i in self.session.get_inputs()}
        given = {name: value.detach().cpu().numpy() for name, value in columns.items() if name in wanted}
        return [torch.from_numpy(value) for value in self.session.run(None, given)]


class Shipped(nn.Module):
    """An exported file as a network: called as the student was, it gives answers by name. It holds no parameters to train."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        super().__init__()
        self.path, self.facts = path, facts
        view = View.of(facts["view"])
        self._keys = view.keys
        self._run: list[Any] = [_opened(path, facts)]
        small = "" if facts["quantize"] == "none" else f" {facts['quantize']}"
        self.called = f"{facts['class']} as {facts['format']}{small}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Shipped:
        return self

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """Answers by name, for the arguments of the student's view."""
        columns = dict(zip(self._keys, args)) | kwargs
        return dict(zip(self.facts["outputs"], self._run[0](columns)))


def _opened(path: Path, facts: dict[str, Any]) -> Any:
    if facts["format"] == "onnx":
        return OnnxSession(path).all
    from limbeck.shipping.to_torch_export import load

    program = load(path)
    names = [entry["name"] for entry in facts["inputs"]]
    return lambda columns: program(*(columns[name] for name in names))
