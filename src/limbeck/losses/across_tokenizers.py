"""What two language models say of one text that they split differently: sorted probabilities, likelihoods of chunks, merged rows.

A chunk is a stretch of text that both tokenisations delimit (`limbeck.language.alignment`); `group` [batch, tokens] gives
the chunk of the token that each position predicts, -1 for none. Logits may be `Projection`s: they are multiplied out for
few rows at a time (`by_rows`), in the backward pass once more, so that no tokens x vocabulary matrix is held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limbeck.errors import RecipeError, nearest
from limbeck.losses.masking import finished, keep, widened
from limbeck.signals import Projection

__all__ = ["binarised", "sorted_l1"]

Logits = Tensor | Projection
Group = Int64[Tensor, "batch tokens"]
Binarised = Literal["binary-ce", "binary-kl", "reverse-binary-kl", "abs", "abs-exp", "k2", "limit"]

ROOM = 48 * 2**20
"""Bytes of the logits of one side that are held at a time."""


def sorted_l1(
    student: Float[Tensor, "*tokens classes"],
    teacher: Float[Tensor, "*tokens others"],
    *,
    temperature: float = 1.0,
    mask: Bool[Tensor, "*tokens"] | None = None,
    weight: Float[Tensor, "*tokens"] | None = None,
) -> Float[Tensor, "*tokens"]:
    """sum_v |sort(p)_v - sort(q)_v|, in [0, 2], p = softmax(teacher / T), q = softmax(student / T) over the last dimension.

    Both are sorted from the greatest down, the shorter filled up with zeros; so no class needs a partner, and any
    permutation of either vocabulary changes nothing. It is 0 where q is a permutation of p, whatever that permutation.

    Source: Boizard et al. 2024, "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    arXiv 2402.12030 (Wasserstein-1 of the two under a uniform cost).
    Raises: RecipeError for a temperature that is not above 0, or tokens that differ in number.
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise RecipeError(
            f"sorted_l1 compares row by row: the student has rows {list(student.shape[:-1])}, the teacher {list(teacher.shape[:-1])}."
        )
    q, p = (probabilities(keep(x, mask, -1), temperature).exp() for x in (student, teacher))
    return finished(sorted_gap(p, q), mask, weight)


def sorted_gap(p: Float[Tensor, "*any n"], q: Float[Tensor, "*any m"]) -> Float[Tensor, "*any"]:
    """sum |sort(p) - sort(q)| over the last dimension, sorted from the greatest down, the shorter filled up with zeros."""
    size = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(x.sort(-1, descending=True).values, (0, size - x.shape[-1])) for x in (p, q))
    return (p - q).abs().sum(-1)


def probabilities(logits: Float[Tensor, "*any classes"], temperature: float) -> Float[Tensor, "*any classes"]:
    """log softmax(logits / T), in fp32 at least."""
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature}: needed is a number above 0; 1 leaves the logits as they are.")
    return torch.log_softmax(widened(logits) / temperature, -1)


def binarised(
    student: Float[Tensor, "..."],
    teacher: Float[Tensor, "..."],
    *,
    form: Binarised = "binary-ce",
    temperature: float = 100.0,
    epsilon: float = 1e-6,
    mask: Bool[Tensor, "..."] | None = None,
    weight: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """A divergence between "this chunk comes" and "it does not" under both models, from the chunk's log-likelihoods <= 0.

    With a = exp(teacher / T - epsilon) and b = exp(student / T - epsilon), in nats:

    - `binary-ce`: -(a log b + (1 - a) log(1 - b)); least, but not 0, at a = b
    - `binary-kl`: the same less the entropy of a, so 0 at a = b; `reverse-binary-kl`: with a and b exchanged
    - `limit`: u log(u / w) - u + w with u = -teacher, w = -student: T times `binary-kl` for T to infinity
    - `abs`: |teacher - student|; `abs-exp`: |a - b|, the total variation; `k2`: ((teacher - student) / T)^2 / 2

    Log-likelihoods above 0 (rounding) count as 0.

    Source: Minixhofer et al. 2025, "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
    arXiv 2503.20083, and its released code.
    Raises: RecipeError for an unknown form or a number that is not above 0.
    """
    if form not in _FORMS:
        raise RecipeError(f"binarised form '{form}' is not known. {nearest(form, _FORMS)}")
    for name, number in (("temperature", temperature), ("epsilon", epsilon)):
        if not number > 0:
            raise RecipeError(f"binarised with {name}={number}: needed is a number above 0.")
    if student.shape != teacher.shape:
        raise RecipeError(f"the student has chunks {list(student.shape)}, the teacher {list(teacher.shape)}.")
    s, t = (widened(x if mask is None else torch.where(mask, x, -1)).clamp(max=0) for x in (student, teacher))
    return finished(_FORMS[form](s, t, temperature, epsilon), mask, weight)


def _bernoulli(kind: str) -> Callable[[Tensor, Tensor, float, float], Tensor]:
    def value(s: Tensor, t: Tensor, temperature: float, epsilon: float) -> Tensor:
        log_a, log_b = t / temperature - epsilon, s / temperature - epsilon
        if kind == "abs-exp":
            return (log_a.exp() - log_b.exp()).abs()
        if kind == "reverse-binary-kl":
            log_a, log_b = log_b, log_a
        not_a, not_b = log1mexp(log_a), log1mexp(log_b)
        entropy = 0 if kind == "binary-ce" else log_a.exp() * log_a + not_a.exp() * not_a
        return entropy - log_a.exp() * log_b - not_a.exp() * not_b

    return value


def _limit(s: Tensor, t: Tensor, temperature: float, epsilon: float) -> Tensor:
    u, w = ((-x).clamp(min=epsilon) for x in (t, s))
    return u * (u / w).log() - u + w


_FORMS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    **{kind: _bernoulli(kind) for kind in ("binary-ce", "binary-kl", "reverse-binary-kl", "abs-exp")},
    "abs": lambda s, t, temperature, epsilon: (t - s).abs(),
    "k2": lambda s, t, temperature, epsilon: ((t - s) / temperature).square() / 2,
    "limit": _limit,
}


def log1mexp(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012: the two forms meet at -log 2)."""
    small = x > -math.log(2)
    near = torch.where(small, x, -1.0)  # the branch not taken must have no infinite slope
    far = torch.where(small, -1.0, x)
    return torch.where(small, torch.log(-torch.expm1(near)), torch.log1p(-far.exp()))


def chunk_sums(values: Float[Tensor, "batch tokens"], group: Group, chunks: int) -> Float[Tensor, "batch chunks"]:
    """The sum of the values of each chunk's tokens: of log-probabilities, the log-likelihood of the chunk (chain rule)."""
    inside = (group >= 0) & (group < chunks)
    sums = values.new_zeros(len(values), chunks)
    return sums.scatter_add(1, torch.where(inside, group, 0), torch.where(inside, values, 0))


def last_of_chunks(group: Group, chunks: int) -> Int64[Tensor, "batch chunks"]:
    """The position that predicts the last token of each chunk; -1 for chunks that a row does not have."""
    return _extreme(group, chunks, "amax", -1)


def first_of_chunks(group: Group, chunks: int) -> Int64[Tensor, "batch chunks"]:
    """The position that predicts the first token of each chunk; -1 for chunks that a row does not have."""
    found = _extreme(group, chunks, "amin", group.shape[1])
    return torch.where(found < group.shape[1], found, -1)


def _extreme(group: Group, chunks: int, how: str, start: int) -> Int64[Tensor, "batch chunks"]:
    inside = (group >= 0) & (group < chunks)
    at = torch.arange(group.shape[1], device=group.device).expand_as(group)
    found = torch.full((len(group), chunks + 1), start, dtype=torch.int64, device=group.device)
    found = found.scatter_reduce(1, torch.where(inside, group, chunks), at, how)
    return found[:, :chunks]


def merged_chunks(group: Group, closes: Bool[Tensor, "batch chunks"]) -> Group:
    """The chunks put together: one goes on into the next until one of them closes; numbered from 0 again."""
    number = closes.long().cumsum(1) - closes.long()
    inside = (group >= 0) & (group < closes.shape[1])
    return torch.where(inside, number.gather(1, torch.where(inside, group, 0)), -1)


def unnormalised_js(
    log_p: Float[Tensor, "*any classes"],
    log_q: Float[Tensor, "*any classes"],
    beta: float,
    *,
    mass: bool = True,
    floor: float = 1e-8,
) -> Float[Tensor, "*any"]:
    """JS_beta of non-negative vectors p, q that need not sum to 1, both clamped to at least `floor`.

    beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; KL(p || q) for beta 0, KL(q || p) for 1. With
    `mass` those two get the terms sum(q - p) or sum(p - q), without which they may be negative; for 0 < beta < 1 the terms
    of both parts cancel, so that nothing is missing there.
    """
    least = math.log(floor)
    log_p, log_q = log_p.clamp(min=least), log_q.clamp(min=least)
    p, q = log_p.exp(), log_q.exp()
    if beta in (0, 1):
        a, log_a, b, log_b = (p, log_p, q, log_q) if beta == 0 else (q, log_q, p, log_p)
        return (a * (log_a - log_b) + ((b - a) if mass else 0)).sum(-1)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return (beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)).sum(-1)


def carried_over(
    log_probs: Float[Tensor, "*any others"], mapping: Int64[Tensor, "others"], classes: int
) -> Float[Tensor, "*any classes"]:
    """Log-probabilities on another vocabulary: class v gets the mass of all classes that `mapping` sends to it.

    Classes that are sent nowhere (-1) lose their mass; the rest is not scaled up. -inf where nothing arrives.
    """
    sent = mapping >= 0
    found = log_probs.new_zeros(*log_probs.shape[:-1], classes)
    return found.index_add(-1, mapping[sent], log_probs[..., sent].exp()).log()


def rows_of(logits: Logits, at: Int64[Tensor, "rows"]) -> Logits:
    """Some positions of [batch, tokens], counted through, as rows."""
    if isinstance(logits, Projection):
        return replace(logits, hidden=logits.hidden.flatten(0, -2)[at])
    if not isinstance(logits, Tensor):
        raise RecipeError(
            f"this method reads whole distributions of the teacher, and its logits are a {type(logits).__name__}: stored or "
            "asked-for answers hold a part of each. Give the teacher itself."
        )
    return logits.flatten(0, -2)[at]


def by_rows(
    function: Callable[..., Tensor], *sides: Logits, each: tuple[Tensor, ...] = (), room: int = ROOM
) -> Float[Tensor, "rows"]:
    """function(logits of side 1, of side 2, ..., *each) in pieces of so many rows that `room` holds a side's logits.

    Every tensor of `each` has one entry per row. With a graph a piece is computed again in the backward pass, so that the
    logits of one piece at a time are held.
    """
    rows = sides[0].shape[0]
    widest = max(side.shape[-1] for side in sides)
    size = max(1, room // (8 if any(_dtype(side) == torch.float64 for side in sides) else 4) // widest)

    def piece(*parts: Any) -> Tensor:
        logits = [widened(p.materialise() if isinstance(p, Projection) else p) for p in parts[: len(sides)]]
        return function(*logits, *parts[len(sides) :])

    found = []
    for start in range(0, rows, size):
        at = slice(start, start + size)
        parts = [*(_cut(side, at) for side in sides), *(x[at] for x in each)]
        if rows > size and torch.is_grad_enabled():
            found.append(checkpoint(piece, *parts, use_reentrant=False, preserve_rng_state=False))
        else:
            found.append(piece(*parts))
    if not found:  # with a graph, so that a batch without anything to compare still has a gradient, 0
        first = sides[0]
        return widened((first.hidden if isinstance(first, Projection) else first).reshape(-1)[:0])
    return torch.cat(found)


def _cut(side: Logits, at: slice) -> Logits:
    if isinstance(side, Projection):
        return replace(side, hidden=side.hidden[at])
    return side[at]


def _dtype(side: Logits) -> torch.dtype:
    return side.hidden.dtype if isinstance(side, Projection) else side.dtype
