"""A student as one graph that takes its columns and gives its answer, and why some students cannot be one."""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.shipping.package import Package, examples, input_names
from limbeck.signals import Projection
from limbeck.views import View

ANSWER = "logits"


class Graph(nn.Module):
    """The student's network alone: columns by position in, the named signals out. No view's transforms, no taps besides its answer."""

    def __init__(self, student: Student):
        super().__init__()
        assert student.view is not None
        self.names = input_names(student)
        view = View(*student.view.keys, **{name: name for name in student.view.named})  # type: ignore[arg-type]
        answer = {name: path for name, path in student.paths.items() if name == ANSWER}
        self.model = student.model
        self.answers: tuple[str, ...] = (ANSWER,)
        self._actor = [Student(student.model, view=view, taps=answer or None)]

    def settle(self, example: dict[str, Tensor]) -> None:
        """Find out what the network answers with: its logits, or where it has none, every tensor of its output."""
        with torch.no_grad():
            signals = self._actor[0](example)
        if ANSWER not in signals:
            self.answers = tuple(name for name, value in signals.items() if isinstance(value, Tensor))

    def forward(self, *columns: Shaped[Tensor, "batch ..."]) -> tuple[Tensor, ...]:
        """The answers, in the order of `answers`."""
        signals = self._actor[0](dict(zip(self.names, columns)))
        found = [signals[name] for name in self.answers]
        return tuple(value.materialise() if isinstance(value, Projection) else value for value in found)


def traced(package: Package, to: str) -> tuple[torch.export.ExportedProgram, Graph, dict[str, Tensor]]:
    """The student as an exported program with a batch of any size, its module, and the example it was traced with.

    Raises:
        RecipeError: the forward pass decides by the values of tensors, or holds a fixed batch size.
    """
    example, vary = examples(package.student, package.needed_rows(to))
    graph = Graph(package.student).eval()
    graph.settle(example)
    return trace(graph, example, vary, to), graph, example


def trace(graph: Graph, example: dict[str, Tensor], vary: dict[str, list[int]], to: str) -> Any:
    """Trace `graph` with a dynamic batch (and dynamic lengths where samples differ in them)."""
    dynamic = tuple(
        {0: torch.export.Dim("batch")} | dict.fromkeys(vary[name], torch.export.Dim.DYNAMIC) for name in graph.names
    )
    columns = tuple(example[name] for name in graph.names)
    try:
        with torch.no_grad(), quietly():
            return torch.export.export(graph, columns, dynamic_shapes={"columns": dynamic}, strict=False)
    except RecipeError:
        raise
    except Exception as error:  # torch.export raises whatever the network's own code raises under tracing
        raise RecipeError(_why(error, graph.model, to)) from error


def _why(error: Exception, model: nn.Module, to: str) -> str:
    """The reason in a sentence, with the line of the user's code where it is known, and what to do."""
    name, told, where = type(model).__name__, str(error), _where(error)
    instead = "Ship the weights with the code that runs them: --to safetensors"
    if "data-dependent" in told.lower() or type(error).__name__.startswith("GuardOnDataDependent"):
        return (
            f"{name} cannot be written as one graph for {to}: its forward decides by the values of its tensors{where}. "
            f"{instead}; or write the decision as torch.where or torch.cond."
        )
    if "specialized" in told or "Constraints violated" in told:
        return (
            f"{name} cannot be written as one graph for {to}: its forward holds a fixed batch size, or loops over the samples{where}. "
            f"Let sizes be read from the tensor (x.shape[0], -1). {instead}"
        )
    first = told.strip().splitlines()[0] if told.strip() else ""
    return f"{name} cannot be written as one graph for {to}{where}: {type(error).__name__}: {first}. {instead}"


def _where(error: Exception) -> str:
    """The last line of somebody's own code before the error."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*ours, "<")):
            line = linecache.getline(frame.filename, frame.lineno or 0).strip()
            return f" ({Path(frame.filename).name}, line {frame.lineno}: {line})"
    return ""


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' own talk, which explains tracing to its authors."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.disable(before)
