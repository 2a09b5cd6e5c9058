"""What right means: the target, the loss against it, the metric in which retention is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from limbeck import losses
from limbeck.errors import RecipeError, nearest
from limbeck.objectives import Loss
from limbeck.signals import Projection, Signals

Values = Float[Tensor, "batch ..."]


def _classification(logits: Values, target: Tensor) -> Values:
    return losses.cross_entropy(logits, target)


def _segmentation(logits: Values, target: Tensor) -> Values:
    return losses.cross_entropy(logits, target.clamp(min=0), dim=1)


def _multilabel(logits: Values, target: Tensor) -> Values:
    return losses.binary_cross_entropy(logits, target.to(logits.dtype))


def _regression(values: Values, target: Tensor) -> Values:
    target = target.to(values.dtype)
    return losses.mse(values.reshape(len(values), -1), target.reshape(len(values), -1))


@dataclass(frozen=True)
class _Kind:
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: str
    higher_is_better: bool = True


KINDS = {
    "classification": _Kind(_classification, "accuracy"),
    "multilabel": _Kind(_multilabel, "f1_macro"),
    "regression": _Kind(_regression, "mse", higher_is_better=False),
    "segmentation": _Kind(_segmentation, "miou"),
}
LATER = ("tagging", "detection", "embedding", "retrieval", "chat", "text", "generation")
LOWER_IS_BETTER = ("mse", "mae", "nll", "brier", "ece", "loss")


class Task:
    """What right means for the data at hand.

    Args:
        name: classification, multilabel, regression or segmentation.
        target: the column that holds what is right.
        labels: the names of the classes, in the order of the logits.
        loss: `(logits, target) -> one value per sample` in place of the task's own.
        metric: the figure in which retention is measured, in place of the task's own.
    """

    def __init__(
        self,
        name: str,
        *,
        target: str = "label",
        labels: Sequence[str] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: str | None = None,
    ):
        if name in LATER:
            raise RecipeError(f"task '{name}' is not there yet. There is: {', '.join(KINDS)}.")
        if name not in KINDS:
            raise RecipeError(f"unknown task '{name}'. {nearest(name, KINDS)}")
        kind = KINDS[name]
        self.name, self.target = name, target
        self.labels = list(map(str, labels)) if labels is not None else None
        self.function = loss or kind.loss
        self.metric = metric or kind.metric
        self.higher_is_better = self.metric not in LOWER_IS_BETTER if metric else kind.higher_is_better

    def __repr__(self) -> str:
        return f"Task({self.name!r}, target={self.target!r}, metric={self.metric!r})"

    def loss(self, signals: Signals, batch: Mapping[str, Any]) -> Loss:
        """The loss against what is right, a part called `task`: cross-entropy, or what the task names.

        Entries of an integer target below zero do not count (an ignore index such as -100 or -1).
        """
        logits, target = self._both(signals, batch)
        values = self.function(logits, target)
        ignores = target.dtype == torch.int64 and values.shape == target.shape and self.name == "segmentation"
        return Loss.mean("task", values, target >= 0 if ignores else None)

    def values(self, signals: Signals, batch: Mapping[str, Any]) -> Shaped[Tensor, "batch"]:
        """The loss per sample (mean over its tokens or pixels), without a graph."""
        with torch.no_grad():
            logits, target = self._both(signals, batch)
            values = self.function(logits, target)
            return values.float().reshape(len(values), -1).mean(1)

    def check(self, logits_shape: tuple[int, ...], target: Tensor, whose: str) -> None:
        """Refuse labels that the logits have no class for, before anything is trained.

        Raises:
            RecipeError: labels out of range, with the range and the number of classes.
        """
        if self.name not in ("classification", "segmentation") or target.is_floating_point():
            return
        classes = logits_shape[0] if self.name == "segmentation" else logits_shape[-1]
        low, high = int(target.min()), int(target.max())
        if high >= classes or (low < 0 and self.name == "classification"):
            raise RecipeError(
                f"column {self.target} holds labels {low} to {high}; the {whose} has {classes} classes (0 to {classes - 1}). "
                f"Give the {whose} {high + 1} classes ({whose}.args.classes={high + 1}), or mend the labels."
            )

    def _both(self, signals: Signals, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if self.target not in batch:
            raise RecipeError(
                f"the task's target '{self.target}' is not a column of the data. {nearest(self.target, map(str, batch))}"
            )
        logits = signals["logits"]
        return logits.materialise() if isinstance(logits, Projection) else logits, batch[self.target]
