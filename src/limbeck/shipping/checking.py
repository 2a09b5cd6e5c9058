"""Whether what was written answers as PyTorch does, on real samples, and how good it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.evaluation import quality
from limbeck.shipping.package import MOST, Rows, inputs
from limbeck.signals import Projection

TOLERANCE = 1e-4  # of the largest answer, and at least of 1: what reordered sums of float32 differ by

Runs = Callable[[dict[str, Tensor]], Tensor]  # inputs by column -> the first answer


def compare(student: Student, run: Runs, rows: Rows, to: str, answers: tuple[str, ...]) -> dict[str, Any]:
    """The largest difference to PyTorch over up to `MOST` real samples, in batches of several sizes.

    Returns:
        `samples`, `largest_error`, `tolerance` (1e-4 of the largest answer, at least 1e-4).

    Raises:
        RecipeError: the difference is above the tolerance, or the answers have other shapes.
    """
    largest = error = 0.0
    seen = 0
    for size in (1, 3, 64, MOST):
        if seen >= min(MOST, len(rows.data[rows.split])):
            break
        batch = rows.batch(rows.split, min(size, MOST - seen), seen)
        with torch.no_grad():
            expected = of_student(student, batch, answers[0])
            got = run(inputs(student, batch))
        if got.shape != expected.shape:
            raise RecipeError(
                f"the {to} file answers with shape {list(got.shape)} where PyTorch gives {list(expected.shape)}; nothing was written. "
                "Ship the weights: --to safetensors"
            )
        seen += len(expected)
        largest = max(largest, float(expected.abs().max()))
        error = max(error, float((got.double() - expected.double()).abs().nan_to_num(torch.inf).max()))
    tolerance = TOLERANCE * max(1.0, largest)
    if not error <= tolerance:
        raise RecipeError(
            f"the {to} file differs from PyTorch by up to {error:.3g} on {seen} real samples, more than the tolerance of {tolerance:.3g} "
            "(1e-4 of the largest answer); nothing was written. Ship the weights: --to safetensors"
        )
    return {"against": "PyTorch", "samples": seen, "largest_error": error, "tolerance": tolerance}


def of_student(student: Student, batch: dict[str, Any], name: str) -> Tensor:
    """What the student itself answers under this name."""
    value = student(batch)[name]
    return (value.materialise() if isinstance(value, Projection) else value).float()


def cost_of_int8(student: Student, run: Runs, rows: Rows, answers: tuple[str, ...]) -> dict[str, Any]:
    """The task's metric before (PyTorch, as trained) and after (the int8 file) on the whole split, and their agreement."""
    before, after, target = [], [], []
    for batch in rows.batches(rows.split):
        with torch.no_grad():
            before.append(of_student(student, batch, answers[0]))
            after.append(run(inputs(student, batch)).float())
        target.append(batch[rows.task.target])
    metric = quality.primary(rows.task.metric, rows.task.name)
    own, small, right = torch.cat(before), torch.cat(after), torch.cat(target)
    told: dict[str, Any] = {"name": rows.task.metric, "split": rows.split, "samples": len(own)}
    told |= {"before": metric(own, right), "after": metric(small, right)}
    if rows.task.name == "classification":
        told["agreement"] = own.argmax(1).eq(small.argmax(1)).double().mean().item()
    return told
