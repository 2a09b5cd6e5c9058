"""Whether a model that says 80 % is right 80 % of the time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Bin:
    """Samples whose confidence lies in [low, high): how many, their mean confidence, the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def ece(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"], *, bins: int = 15) -> float:
    """Expected calibration error, sum over bins of count / N * |accuracy - confidence|, in [0, 1].

    Bins are of equal width in the confidence (largest softmax probability); 1 belongs to the last bin.
    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 3 and 5.
    """
    found = [b for b in reliability(logits, target, bins=bins) if b.count]
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / max(sum(b.count for b in found), 1)


def reliability(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"], *, bins: int = 15) -> list[Bin]:
    """The bins of `ece`, empty ones included (their confidence and accuracy are nan)."""
    confidence, predicted = _probabilities(logits).max(1)
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    place = torch.bucketize(confidence, inner, right=True)
    count = place.bincount(minlength=bins)
    right = place.bincount(predicted.eq(target).double(), minlength=bins) / count
    mean = place.bincount(confidence, minlength=bins) / count
    return [Bin(i / bins, (i + 1) / bins, int(count[i]), mean[i].item(), right[i].item()) for i in range(bins)]


def brier(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"]) -> float:
    """Mean over samples of the squared distance between the probabilities and the one-hot target, in [0, 2].

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability", eq. 2.
    """
    p = _probabilities(logits)
    return (p - torch.nn.functional.one_hot(target, p.shape[1])).square().sum(1).mean().item()


def figures(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Calibration error and Brier score under the names they have in ``result.json``."""
    return {"ece": ece(logits, target), "brier": brier(logits, target)}


def _probabilities(logits: Tensor) -> Tensor:
    return logits.double().softmax(1)
