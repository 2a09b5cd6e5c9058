"""One set of predictions compared at three levels, and at several temperatures: samples, pairs of classes, pairs of samples.

The functions are of **batch scope** (`Term(..., scope="batch")`, `Loss.batch`), because they set aside what the teacher is
surer of than the median of the batch; only `kl_at` is not. They take logits [batch, classes], student first, compute
in fp32 at least (also under autocast), and let gradients into both arguments, but not through the choice of what counts.

- `mask` (bool, [batch]): the other samples are as if they were not there. Nothing that counts: 0.
- `temperatures`: each T > 0 adds a term. Means are over all samples (classes), set aside or not, so a half that counts
  weighs half.
- `select`: True: only the less sure half counts (confidence at most the median). False: all count, times the share that
  would have; the released code does so, since it reduces before it masks.

Source: Jin et al. 2023, "Multi-level logit distillation", and the code released with Sun et al. 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import products
from limbeck.losses.divergences import kl
from limbeck.losses.masking import paired
from limbeck.losses.standardise import standardised_kl

__all__ = ["kl_at", "relation_of_classes", "relation_of_samples", "unsure_kl"]

Logits = Float[Tensor, "batch classes"]
Mask = Bool[Tensor, "batch"]


def kl_at(
    student: Logits,
    teacher: Logits,
    *,
    temperatures: Sequence[float],
    standardise: bool = False,
    mask: Mask | None = None,
) -> Float[Tensor, "batch"]:
    """Sum over T of T^2 KL(softmax(teacher / T) || softmax(student / T)), one value per sample; of z-scores on request."""
    divergence = standardised_kl if standardise else kl
    return torch.stack([divergence(student, teacher, temperature=T, mask=mask) for T in temperatures]).sum(0)


def unsure_kl(
    student: Logits,
    teacher: Logits,
    *,
    temperatures: Sequence[float],
    standardise: bool = False,
    select: bool = True,
    mask: Mask | None = None,
) -> Float[Tensor, ""]:
    """Mean of `kl_at`, where samples whose largest teacher probability (at T = 1) is above the median give 0: one number."""
    student, teacher = _samples(student, teacher, mask)
    unsure = less_sure_half(torch.softmax(teacher.detach(), 1).amax(1))
    values = kl_at(student, teacher, temperatures=temperatures, standardise=standardise)
    return _mean(values, unsure, select)


def relation_of_classes(
    student: Logits, teacher: Logits, *, temperatures: Sequence[float], select: bool = True, mask: Mask | None = None
) -> Float[Tensor, ""]:
    """Sum over T of ||Y_t' Y_t - Y_s' Y_s||_F^2 / C, Y = softmax(logits / T) [batch, classes]: one number.

    Classes count (columns of the difference) to which the teacher gives at most the median of what it gives to a class.
    """
    student, teacher = _samples(student, teacher, mask)
    given = less_sure_half(torch.softmax(teacher.detach(), 1).sum(0))
    per_class = torch.stack(
        [
            (products(t.mT, t.mT) - products(s.mT, s.mT)).square().sum(0)
            for s, t in _probabilities(student, teacher, temperatures)
        ]
    ).sum(0)
    return _mean(per_class, given, select)


def relation_of_samples(
    student: Logits, teacher: Logits, *, temperatures: Sequence[float], select: bool = True, mask: Mask | None = None
) -> Float[Tensor, ""]:
    """Sum over T of ||Y_t Y_t' - Y_s Y_s'||_F^2 / B: one number. Samples count as in `unsure_kl` (columns)."""
    student, teacher = _samples(student, teacher, mask)
    unsure = less_sure_half(torch.softmax(teacher.detach(), 1).amax(1))
    per_sample = torch.stack(
        [(products(t, t) - products(s, s)).square().sum(0) for s, t in _probabilities(student, teacher, temperatures)]
    ).sum(0)
    return _mean(per_sample, unsure, select)


def less_sure_half(confidence: Float[Tensor, "items"]) -> Bool[Tensor, "items"]:
    """Which are at most the median (of an even number: the middle of the two in the middle); of equals, all."""
    if len(confidence) == 0:
        return confidence > 0
    return confidence <= torch.quantile(confidence.float() if confidence.dtype != torch.float64 else confidence, 0.5)


def _mean(values: Float[Tensor, "items"], chosen: Bool[Tensor, "items"], select: bool) -> Float[Tensor, ""]:
    share = chosen.to(values.dtype)
    counted = torch.where(chosen, values, 0) if select else values * share.sum() / max(len(values), 1)
    return counted.sum() / max(len(values), 1)


def _samples(student: Logits, teacher: Logits, mask: Mask | None) -> tuple[Logits, Logits]:
    student, teacher = paired(student, teacher)
    return (student, teacher) if mask is None else (student[mask.bool()], teacher[mask.bool()])


def _probabilities(student: Logits, teacher: Logits, temperatures: Sequence[float]) -> list[tuple[Logits, Logits]]:
    if wrong := [T for T in temperatures if not T > 0]:
        raise RecipeError(f"temperature {wrong[0]}: needed is a number above 0; 1 leaves the logits as they are.")
    return [(torch.softmax(student / T, 1), torch.softmax(teacher / T, 1)) for T in temperatures]
