"""Whether a model that says 80 % is right 80 % of the time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
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
    return gap(reliability(logits, target, bins=bins))


def reliability(logits: Float[Tensor, "batch classes"], target: Int[Tensor, "batch"], *, bins: int = 15) -> list[Bin]:
    """The bins of `ece`, empty ones included (their confidence and accuracy are nan)."""
    confidence, predicted = _probabilities(logits).max(1)
    return binned(confidence, predicted.eq(target), bins=bins)


def binned(confidence: Float[Tensor, "samples"], right: Bool[Tensor, "samples"], *, bins: int = 15) -> list[Bin]:
    """The bins of predictions by how sure each was, in [0, 1], and whether it was right; in double precision."""
    inner = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)[1:-1]
    confidence = confidence.double()
    place = torch.bucketize(confidence, inner, right=True)
    count = place.bincount(minlength=bins)
    share = place.bincount(right.double(), minlength=bins) / count
    mean = place.bincount(confidence, minlength=bins) / count
    return [Bin(i / bins, (i + 1) / bins, int(count[i]), mean[i].item(), share[i].item()) for i in range(bins)]


def gap(found: Iterable[Bin]) -> float:
    """Sum over bins of count / N * |accuracy - confidence|; 0 of no samples at all."""
    filled = [b for b in found if b.count]
    return sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / max(sum(b.count for b in filled), 1)


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
