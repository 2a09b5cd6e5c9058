"""Divergences made for language models: skewed, adaptive, restricted to what the teacher holds likely.

Conventions are those of `limbeck.losses.divergences`: logits, student first, p = softmax(teacher / T), q = softmax(student
/ T) over `dim`; one value per token, in nats, in fp32 (fp64 for fp64), never negative, with the same `temperature`,
`scale` (T^2), `mask` and `weight`, and gradients into both. For models that give hidden states and a head, these and
the classic ones are found without the logits in `limbeck.losses.linear`.

Errors: `RecipeError` for different shapes, a mask that does not fit, or an option outside its range.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.divergences import (
    finished_at,
    js,
    kl,
    log_probabilities,
    mixture,
    relative_entropy,
    reverse_kl,
)

__all__ = ["adaptive_kl", "continuous_js", "skew_kl", "skew_reverse_kl", "top_k_kl", "trl_js", "tvd"]

Logits = Float[Tensor, "batch ..."]
Values = Float[Tensor, "batch ..."]
Mask = Bool[Tensor, "batch ..."]
Weight = Float[Tensor, "batch ..."]


def skew_kl(
    student: Logits,
    teacher: Logits,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """T^2 * KL(p || alpha p + (1 - alpha) q), 0 < alpha < 1: at most -T^2 log alpha, and `kl` for alpha to 0.

    Source: Ko et al. 2024, "DistiLLM", equation 5; its code leaves out the entropy of p, a constant.
    """
    inside("skew_kl with alpha", alpha)
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    return finished_at(relative_entropy(log_p, mixture(log_p, log_q, alpha), dim), temperature, scale, mask, weight)


def skew_reverse_kl(
    student: Logits,
    teacher: Logits,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """T^2 * KL(q || (1 - alpha) p + alpha q), 0 < alpha < 1: at most -T^2 log alpha, and `reverse_kl` for alpha to 0.

    The gradient flows through q in the mixture too, as in DistiLLM (DistiLLM-2 holds it constant there).

    Source: Ko et al. 2024, "DistiLLM", section 3.1.
    """
    inside("skew_reverse_kl with alpha", alpha)
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    return finished_at(relative_entropy(log_q, mixture(log_q, log_p, alpha), dim), temperature, scale, mask, weight)


def tvd(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """Total variation T^2 * sum |p - q| / 2, in [0, T^2].

    At T = 1 one minus it is how often speculative sampling accepts a draft of q for p (Leviathan et al. 2023, theorem 3.5).

    Source: Wen et al. 2023, "f-divergence minimization for sequence-level knowledge distillation", section 3.
    """
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    return finished_at((log_p.exp() - log_q.exp()).abs().sum(dim) / 2, temperature, scale, mask, weight)


def adaptive_kl(
    student: Logits,
    teacher: Logits,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """T^2 * (w KL(p || q) + (1 - w) KL(q || p)), w the part of sum |p - q| in the head of p, a constant for the gradient.

    The tail of p are its smallest classes that together hold at most `alpha`, 0 < alpha < 1; the head is the rest.

    Source: Wu et al. 2024, "Rethinking Kullback-Leibler divergence in knowledge distillation for large language models",
    section 4.
    """
    inside("adaptive_kl with alpha", alpha)
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    log_q, log_p = log_q.movedim(dim, -1), log_p.movedim(dim, -1)
    w = head_share(log_q.detach().exp(), log_p.detach().exp(), alpha)
    # an infinite direction that counts nothing contributes nothing
    both = torch.where(w > 0, w * relative_entropy(log_p, log_q, -1), 0)
    both = both + torch.where(w < 1, (1 - w) * relative_entropy(log_q, log_p, -1), 0)
    return finished_at(both, temperature, scale, mask, weight)


def top_k_kl(
    student: Logits,
    teacher: Logits,
    *,
    k: int = 64,
    renormalise_student: bool = False,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """T^2 * KL(p' || q), p' = p on its k >= 1 largest classes, divided by their sum (k above all classes: all of them).

    It is biased: smallest where q has all its mass on those k classes, and never below -T^2 log q(those k). With
    `renormalise_student` q is divided by its sum over the same classes; then q = p gives 0, but nothing holds the rest
    of q, and k = 1 is always 0.

    Source: the way top-k logits are commonly used (DistillKit's `missing: zero`).
    """
    at_least_one("top_k_kl with k", k)
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    log_p, top = log_p.topk(min(k, log_p.shape[dim]), dim=dim)
    log_q = log_q.gather(dim, top)
    if renormalise_student:
        log_q = torch.log_softmax(log_q, dim)
    return finished_at(relative_entropy(torch.log_softmax(log_p, dim), log_q, dim), temperature, scale, mask, weight)


def continuous_js(
    student: Logits,
    teacher: Logits,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """js / (beta (1 - beta)), 0 <= beta <= 1: from `kl` at 0 to `reverse_kl` at 1 without a jump; 4 js in the middle.

    Its gradients have about one size for every beta, which those of `js` have not. In fp32 the error is about
    1e-7 / (beta (1 - beta)), so a beta within 0.001 of an end is better that end itself.

    Source: the limits of `js`; the normalisation is ours.
    """
    loss = between(kl, js, reverse_kl, beta)
    values = loss(student, teacher, temperature=temperature, scale=scale, dim=dim, mask=mask, weight=weight)
    return values / (beta * (1 - beta)) if 0 < beta < 1 else values


def trl_js(
    student: Logits,
    teacher: Logits,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Weight | None = None,
) -> Values:
    """`js`, but `kl` at beta = 0 and `reverse_kl` at beta = 1: as TRL's trainers have it, with a jump at both ends.

    Give `scale=False` too for the loss of those trainers, which have no factor T^2.
    """
    loss = between(kl, js, reverse_kl, beta)
    return loss(student, teacher, temperature=temperature, scale=scale, dim=dim, mask=mask, weight=weight)


def head_share(
    q: Float[Tensor, "*any classes"], p: Float[Tensor, "*any classes"], alpha: float
) -> Float[Tensor, "*any"]:
    """Which part of sum |p - q| is in the head of p; one half where they are equal everywhere.

    The tail are the smallest p that together are at most `alpha`; the head is the rest. The largest p is always in the
    head, as it would be without rounding.
    """
    order = p.argsort(dim=-1)
    tail = p.gather(-1, order).cumsum(-1) <= alpha
    tail[..., -1] = False
    gap = (p - q).abs()
    in_tail = torch.where(tail, gap.gather(-1, order), 0).sum(-1)
    whole = gap.sum(-1)
    return torch.where(whole > 0, (1 - in_tail / whole.where(whole > 0, 1)).clamp(0, 1), 0.5)


def inside(what: str, value: float) -> None:
    """Refuse a number that is not strictly between 0 and 1."""
    if not 0 < value < 1:
        raise RecipeError(f"{what}={value}: needed is a number strictly between 0 and 1.")


def at_least_one(what: str, value: int) -> None:
    """Refuse a number below 1."""
    if value < 1:
        raise RecipeError(f"{what}={value}: needed is a whole number of at least 1.")


def between(
    at_zero: Callable[..., Any], inner: Callable[..., Any], at_one: Callable[..., Any], beta: float
) -> Callable[..., Any]:
    """`at_zero` for beta = 0, `at_one` for 1, and `inner` with that beta for what is between."""
    if not 0 <= beta <= 1:
        raise RecipeError(f"JS with beta={beta}: needed is a number from 0 to 1.")
    return at_zero if beta == 0 else at_one if beta == 1 else partial(inner, beta=beta)
