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
from limbeck.language.likelihood import log_probs_of
from limbeck.losses import linear
from limbeck.losses.linear.choosing import most_probable
from limbeck.objectives import Loss
from limbeck.signals import Projection, Signals
from limbeck.sketches import Sketch

Values = Float[Tensor, "batch ..."]


def _classification(logits: Values, target: Tensor) -> Values:
    return losses.cross_entropy(logits, target)


def _segmentation(logits: Values, target: Tensor) -> Values:
    return losses.cross_entropy(logits, target.clamp(min=0), dim=1)


def _multilabel(logits: Values, target: Tensor) -> Values:
    return losses.binary_cross_entropy(logits, target.to(logits.dtype))


def _language(logits: Any, target: Tensor) -> Values:
    """-log softmax(z_t)_y per token; 0 where nothing is to be predicted. A projection is never multiplied out.

    Of a sketch: what it knows of the token, or an even share of the rest.
    """
    if isinstance(logits, Projection):
        return linear.cross_entropy(logits, target, ignore_index=UNCOUNTED)
    if isinstance(logits, Sketch):
        return -log_probs_of(logits, target, target != UNCOUNTED)
    counts = target != UNCOUNTED
    return torch.where(counts, losses.cross_entropy(logits, target.where(counts, 0), dim=-1), 0.0)


def _generation(generated: Values, real: Tensor) -> Values:
    raise RecipeError(
        "a generation task has no loss of its own: what right means is a distribution, which its figures compare. Take a method of generation, "
        "such as method=denoising, which learns from data alone."
    )


def _regression(values: Values, target: Tensor) -> Values:
    target = target.to(values.dtype)
    return losses.mse(values.reshape(len(values), -1), target.reshape(len(values), -1))


@dataclass(frozen=True)
class _Kind:
    loss: Callable[[Any, Tensor], Tensor]
    metric: str
    higher_is_better: bool = True
    target: str = "label"
    mask: str | None = None  # the column of what counts


KINDS = {
    "classification": _Kind(_classification, "accuracy"),
    "multilabel": _Kind(_multilabel, "f1_macro"),
    "regression": _Kind(_regression, "mse", higher_is_better=False),
    "segmentation": _Kind(_segmentation, "miou"),
    "chat": _Kind(_language, "bits_per_byte", higher_is_better=False, target="target", mask="answer"),
    "text": _Kind(_language, "bits_per_byte", higher_is_better=False, target="target", mask="answer"),
    "generation": _Kind(_generation, "mmd", higher_is_better=False, target="x"),
}
LANGUAGE = ("chat", "text")
UNCOUNTED = -100
"""The target of a position from which nothing is to be predicted."""
GENERATED = ("x", "image", "latent", "sample", "audio", "video")
"""The usual names of a column that holds what is to be generated."""
LATER = ("tagging", "detection", "embedding", "retrieval")
LOWER_IS_BETTER = (
    *("mse", "mae", "nll", "brier", "ece", "loss", "bits_per_byte", "perplexity"),
    *("mmd", "frechet", "kernel_distance", "sliced_wasserstein"),
)


class Task:
    """What right means for the data at hand.

    Args:
        name: classification, multilabel, regression, segmentation, or for language models chat (messages) or text
            (plain texts, or prompts with completions), or for generators of pictures and points generation.
        target: the column that holds what is right; None: `label`, of a language task the column of next tokens, of
            generation the real samples, `x`.
        labels: the names of the classes, in the order of the logits.
        loss: `(logits, target) -> one value per sample` in place of the task's own.
        metric: the figure in which retention is measured, in place of the task's own.
        classifier: of generation: the network (anything a student may be) in whose features samples are compared; None: as they are.
    """

    def __init__(
        self,
        name: str,
        *,
        target: str | None = None,
        labels: Sequence[str] | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: str | None = None,
        classifier: Any = None,
    ):
        if name in LATER:
            raise RecipeError(f"task '{name}' is not there yet. There is: {', '.join(KINDS)}.")
        if name not in KINDS:
            raise RecipeError(f"unknown task '{name}'. {nearest(name, KINDS)}")
        kind = KINDS[name]
        self.name, self.target = name, target or kind.target
        self.labels = list(map(str, labels)) if labels is not None else None
        self.mask = kind.mask
        self.function = loss or kind.loss
        self.metric = metric or ("frechet" if classifier is not None else kind.metric)
        self.classifier: Any = classifier
        self._judge: Any = None
        self.higher_is_better = self.metric not in LOWER_IS_BETTER if metric else kind.higher_is_better

    def __repr__(self) -> str:
        return f"Task({self.name!r}, target={self.target!r}, metric={self.metric!r})"

    def loss(self, signals: Signals, batch: Mapping[str, Any]) -> Loss:
        """The loss against what is right, a part called `task`: cross-entropy, or what the task names.

        Entries of an integer target below zero do not count (an ignore index such as -100 or -1), of a language task
        those outside the column `answer`.
        """
        logits, target = self._both(signals, batch)
        values = self.function(logits, target)
        if self.mask is not None:
            return Loss.mean("task", values, batch[self.mask])
        ignores = target.dtype == torch.int64 and values.shape == target.shape and self.name == "segmentation"
        return Loss.mean("task", values, target >= 0 if ignores else None)

    def values(self, signals: Signals, batch: Mapping[str, Any]) -> Shaped[Tensor, "batch"]:
        """The loss per sample (mean over its tokens or pixels), without a graph."""
        with torch.no_grad():
            logits, target = self._both(signals, batch)
            values = self.function(logits, target)
            return values.float().reshape(len(values), -1).mean(1)

    def outputs(self, signals: Signals, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """What the figures of these samples are computed from, one row each, and what they are compared with.

        The logits in fp32 and the target; of a language task [nats, tokens, hits] (the sum of -log p, how many tokens
        count, how many of them are the most probable one), and how many bytes of text these tokens spell; of generation the generated
        sample (or its features) with its label (-1: none) and whether the classifier sees it (nan: not asked), and the real one.
        """
        if self.name == "generation":
            return self._samples(signals, batch)
        if self.name not in LANGUAGE:
            logits = signals["logits"]
            logits = logits.materialise() if isinstance(logits, Projection) else logits
            return logits.float(), batch[self.target]
        logits, target = self._both(signals, batch)
        nats, counts = self.function(logits, target).sum(1), batch["answer"].sum(1)
        hits = (most_probable(logits, batch["answer"]) == target).logical_and(batch["answer"]).sum(1)
        return torch.stack([nats.float(), counts.float(), hits.float()], 1), batch["answer_bytes"]

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

    def _samples(self, signals: Signals, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        from limbeck.evaluation.generation import Classifier
        from limbeck.evaluation.pictures import as_large_as, thumbnails

        made = signals["generated"].float()
        real = as_large_as(batch[self.target].float(), made)
        label = batch.get("label")
        label = (
            label
            if isinstance(label, Tensor) and label.dim() == 1
            else torch.full((len(made),), -1, device=made.device)
        )
        hit = torch.full((len(made),), torch.nan, device=made.device)
        if self.classifier is not None:
            self._judge = self._judge or Classifier(self.classifier)
            judged = self._judge(made)
            hit = torch.where(label >= 0, (judged["logits"].argmax(1) == label).float(), hit)
            made, real = judged["embedding"], self._judge(real)["embedding"]
        made, real = thumbnails(made), thumbnails(real)
        return torch.cat([made.flatten(1), label[:, None].float(), hit[:, None]], 1), real.flatten(1)

    def _both(self, signals: Signals, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if self.target not in batch:
            raise RecipeError(
                f"the task's target '{self.target}' is not a column of the data. {nearest(self.target, map(str, batch))}"
            )
        logits = signals["generated" if self.name == "generation" else "logits"]
        if isinstance(logits, Projection) and self.mask is None:
            logits = logits.materialise()
        return logits, batch[self.target]
