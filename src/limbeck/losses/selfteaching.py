"""Soft labels that a student makes for itself: how sure of the right class, and in which order the others come.

Conventions as in `limbeck.losses.classification`: logits [batch, classes], int64 labels, values in nats, fp32 at least.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.losses.masking import widened

__all__ = ["confident_cross_entropy"]


def confident_cross_entropy(
    student: Float[Tensor, "batch classes"],
    target: Int64[Tensor, "batch"],
    *,
    mask: Bool[Tensor, "batch"] | None = None,
) -> Float[Tensor, "counted"]:
    """-P log p_y with P = 1 + p_y^2 - mean over the batch of p_y^2, a weight without gradient: the sure learn more.

    Of **batch scope** (the mean): one value per sample that counts; `mask` leaves samples out of the mean too. The mean
    of P is 1. Source: Yang et al. 2023, "From knowledge distillation to self-knowledge distillation", the target part
    of USKD for hard labels.
    """
    if mask is not None:
        student, target = student[mask.bool()], target[mask.bool()]
    log_p = widened(student).log_softmax(-1).gather(1, target.unsqueeze(1)).squeeze(1)
    square = (2 * log_p.detach()).exp()
    return -(1 + square - square.mean()) * log_p


def rank_scores(
    weak: Float[Tensor, "batch classes"],
    student: Float[Tensor, "batch classes"],
    target: Int64[Tensor, "batch"],
    *,
    mode: Literal["prob", "code"] = "prob",
) -> Float[Tensor, "batch classes"]:
    """What ranks the classes: w_c / (1 - w_y + 1e-6) + s_c / (1 - s_y + 1e-6), from two sets of logits, no gradient.

    w = softmax(weak); s = softmax(student), or with `code` its logarithm, as the released code of USKD has it.
    """
    scores = torch.zeros_like(widened(student))
    for logits, log in ((weak, False), (student, mode == "code")):
        x = widened(logits.detach())
        x = x.log_softmax(-1) if log else x.softmax(-1)
        scores += x / (1 - x.gather(1, target.unsqueeze(1)) + 1e-6)
    return scores


def zipf_labels(
    scores: Float[Tensor, "batch classes"], target: Int64[Tensor, "batch"]
) -> Float[Tensor, "batch classes"]:
    """Probabilities of all classes but the label's by Zipf's law: proportional to 1 / rank, 0 at the label; no gradient.

    Ranks count all classes from 1, the highest score first, the label among them. Rows sum to 1.

    Source: Yang et al. 2023, the non-target part of USKD.
    """
    ranks = scores.detach().argsort(dim=1, descending=True, stable=True).argsort(1) + 1
    mass = (1 / widened(ranks)).scatter(1, target.unsqueeze(1), 0.0)
    return mass / mass.sum(1, keepdim=True)
