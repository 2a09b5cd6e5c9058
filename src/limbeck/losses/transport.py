"""Optimal transport between two sets of class distributions: the student's and the teacher's, of a batch or a text.

`sinkhorn` is of **batch scope**: it looks at every pair of rows, so it is used with `Term(..., scope="batch")` or
`Loss.batch`, which never cut. Logits are [..., classes]; every row is one distribution, p = softmax(student / T),
t = softmax(teacher / T). Computed in fp32 (fp64 for fp64), under autocast too; gradients flow into **both** arguments.

Errors: `RecipeError` for different shapes, a mask that does not fit, or an option outside its range.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, keep, paired

__all__ = ["sinkhorn"]

Logits = Float[Tensor, "... classes"]
Distributions = Float[Tensor, "*sets rows classes"]
Pairs = Float[Tensor, "*sets rows rows"]


def sinkhorn(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    debiased: bool = False,
    mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "counted"]:
    """(1/n) sum_ij P_ij W_ij over the n rows that count, as one value sum_j P_ij W_ij per row, in [0, 2].

    W_ij = ||p_i - t_j||_1 is the ground cost. P is exp(-W / epsilon), its rows and then its columns divided by their sums,
    `iterations` times, in log-domain, so that it has mass n and a small epsilon underflows nowhere; the gradient flows
    through W and through all iterations. One row: P = 1 and the value is 2 TVD(p, t). Unchanged when the rows of both
    sides are moved together, and when the rows of one side alone are (the sum, up to what the iterations left over).

    Equal sides do not give 0, but what epsilon blurs; `debiased` takes off the mean of both sides' cost of going to
    themselves, (OT(p, p) + OT(t, t)) / 2, and then they do (values may be below 0).

    Without any row that counts it is one 0. Time: rows^2 * classes, memory: rows^2 * iterations.

    Source: Cui et al. 2024, "SinKD", arXiv 2402.17110, batch-wise Sinkhorn distance; its code has the sum in place of the
    mean (n times this), which grows with the batch. `debiased`: Feydy et al. 2019, "Interpolating between optimal transport
    and MMD using Sinkhorn divergences", equation 3.
    """
    student, teacher = paired(student, teacher)
    rows = student.shape[:-1]
    counts = None if mask is None else aligned(mask.bool(), rows, "mask").expand(rows).flatten()
    ours, theirs = (x.flatten(0, -2) for x in (student, teacher))
    if counts is not None:
        ours, theirs = ours[counts], theirs[counts]
    if not len(ours):
        return ours.sum().reshape(1)
    return transported(ours, theirs, temperature=temperature, epsilon=epsilon, iterations=iterations, debiased=debiased)


def transported(
    student: Distributions,
    teacher: Distributions,
    *,
    temperature: float = 2.0,
    epsilon: float = 0.1,
    iterations: int = 20,
    debiased: bool = False,
    mask: Bool[Tensor, "*sets rows"] | None = None,
) -> Float[Tensor, "*sets rows"]:
    """`sinkhorn` of many sets at once: logits [..., rows, classes] give sum_j P_ij W_ij, exactly 0 where `mask` is False.

    Rows that do not count go nowhere and nothing goes to them, so each set may have its own number of rows.
    """
    if not temperature > 0 or not epsilon > 0 or iterations < 1:
        raise RecipeError(
            f"sinkhorn with temperature={temperature:g}, epsilon={epsilon:g}, iterations={iterations}: needed are a temperature and an "
            "epsilon above 0 and at least one iteration."
        )
    student, teacher = (keep(x, mask, -1) for x in paired(student, teacher))
    p, t = ((x / temperature).softmax(-1) for x in (student, teacher))

    def cost(a: Distributions, b: Distributions) -> Float[Tensor, "*sets rows"]:
        with torch.autocast(a.device.type, enabled=False):
            ground = torch.cdist(a, b, p=1)
        return (plan(ground, epsilon, iterations, mask) * ground).sum(-1)

    values = cost(p, t)
    if debiased:
        values = values - (cost(p, p) + cost(t, t)) / 2
    return values if mask is None else torch.where(mask, values, 0)


def plan(ground: Pairs, epsilon: float, iterations: int, mask: Bool[Tensor, "*sets rows"] | None = None) -> Pairs:
    """exp(-ground / epsilon) with rows, then columns brought to sum 1, so many times; rows outside `mask` keep to themselves."""
    log_k = -ground / epsilon
    if mask is not None:
        alone = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
        log_k = log_k.masked_fill(mask.unsqueeze(-1) ^ mask.unsqueeze(-2), -math.inf)
        # among themselves: each goes to itself, so that no sum is empty (whose gradient is nan)
        none = ~mask.unsqueeze(-1) & ~mask.unsqueeze(-2)
        log_k = log_k.masked_fill(none & ~alone, -math.inf).masked_fill(none & alone, 0.0)
    for _ in range(iterations):
        log_k = log_k - log_k.logsumexp(-1, keepdim=True)
        log_k = log_k - log_k.logsumexp(-2, keepdim=True)
    return log_k.exp()
