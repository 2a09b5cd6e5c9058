"""The divergences themselves: value per token and gradient in the student's logits, on a few tokens at a time.

Each is called with the logits z (student) and t (teacher) at the temperature, [tokens, classes], and gives the values of
D(q, p), q = softmax(z) and p = softmax(t). **Both arguments are overwritten**, `z` with the gradient of D in z, as written
out in each docstring. Where D depends on z through q alone, with rho_c = dD/dq_c, that gradient is q (rho - sum q rho), so
that rho may be off by a constant. Logits must be finite; a class whose probability vanishes contributes nothing.

A form goes over its arguments some ten times and computes one exponential per side, so the caller hands it what a cache
holds. Logarithms are of ratios near one (`torch.log1p`) or of single numbers per token: that is exact where p and q
nearly agree, and the general logarithm costs, on some processors, as much as the products of both heads.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from limbeck.losses.token_divergences import head_share

__all__: list[str] = []  # no loss: these are its inner part

Logits = Float[Tensor, "tokens classes"]
Values = Float[Tensor, "tokens"]


def kl(z: Logits, t: Logits) -> Values:
    """sum p (log p - log q); gradient q - p."""
    q, p, gap = _probabilities(z, t)
    q.sub_(p)
    return -_sum(p, gap)


def reverse_kl(z: Logits, t: Logits) -> Values:
    """sum q (log q - log p); rho = log q - log p."""
    q, _, gap = _probabilities(z, t)
    return _through_softmax(q, gap)


def jeffreys(z: Logits, t: Logits) -> Values:
    """The sum of both directions."""
    return _both_directions(z, t, None)


def adaptive_kl(z: Logits, t: Logits, *, alpha: float) -> Values:
    """w KL(p || q) + (1 - w) KL(q || p), w (a constant for the gradient) the part of sum |p - q| in the head of p."""
    return _both_directions(z, t, alpha)


def js(z: Logits, t: Logits, *, beta: float) -> Values:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; rho = (1 - beta) log(q / m)."""
    q, p = torch.softmax(z, -1, out=z), torch.softmax(t, -1, out=t)
    m = torch.lerp(q, p, beta)
    from_p = _sum(p, _log_ratio(p, m))
    rho = _log_ratio(q, m).mul_(1 - beta)
    return beta * from_p + _through_softmax(q, rho)


def continuous_js(z: Logits, t: Logits, *, beta: float) -> Values:
    """The same over beta (1 - beta)."""
    values = js(z, t, beta=beta)
    z.div_(beta * (1 - beta))
    return values / (beta * (1 - beta))


def skew_kl(z: Logits, t: Logits, *, alpha: float) -> Values:
    """KL(p || m), m = alpha p + (1 - alpha) q; rho = (alpha - 1) p / m."""
    q, p = torch.softmax(z, -1, out=z), torch.softmax(t, -1, out=t)
    m = torch.lerp(q, p, alpha)
    values = _sum(p, _log_ratio(p, m))
    _through_softmax(q, torch.div(p, m, out=m).mul_(alpha - 1))
    return values


def skew_reverse_kl(z: Logits, t: Logits, *, alpha: float) -> Values:
    """KL(q || m), m = (1 - alpha) p + alpha q; rho = log(q / m) - alpha q / m."""
    q, p = torch.softmax(z, -1, out=z), torch.softmax(t, -1, out=t)
    m = torch.lerp(p, q, alpha)
    rho = _log_ratio(q, m)
    values = _sum(q, rho)
    _through_softmax(q, rho.sub_(torch.div(q, m, out=m), alpha=alpha))
    return values


def tvd(z: Logits, t: Logits) -> Values:
    """sum |p - q| / 2; rho = sign(q - p) / 2 (0 where they are equal)."""
    q, p = torch.softmax(z, -1, out=z), torch.softmax(t, -1, out=t)
    gap = torch.sub(q, p, out=t)
    values = gap.abs().sum(-1) / 2
    _through_softmax(q, gap.sign_().div_(2))
    return values


def top_k_kl(z: Logits, t: Logits, *, k: int, renormalise_student: bool) -> Values:
    """KL(p' || q), p' = p on its k largest classes, divided by their sum; gradient q - p' (q' - p' with q' likewise)."""
    largest, top = t.topk(min(k, t.shape[-1]), dim=-1)
    log_p, log_q = largest.log_softmax(-1), z.gather(-1, top)
    if renormalise_student:
        log_q = log_q.log_softmax(-1)
        z.zero_().scatter_(-1, top, log_q.exp())
    else:
        largest, of_largest = _normalise(z)
        log_q.sub_(largest).add_(of_largest)
    z.scatter_add_(-1, top, -log_p.exp())
    return _sum(log_p.exp(), log_p - log_q)


def labels(z: Logits, target: Int64[Tensor, "tokens"]) -> Values:
    """-log q_y; gradient q - [c = y]."""
    target = target[:, None]
    own = z.gather(-1, target)
    largest, of_largest = _normalise(z)
    z.scatter_add_(-1, target, torch.full_like(own, -1))
    return (largest - own - of_largest).squeeze(-1)


def _both_directions(z: Logits, t: Logits, alpha: float | None) -> Values:
    """Both directions, each once, or (`alpha` given) weighed by w and 1 - w."""
    q, p, gap = _probabilities(z, t)
    w = None if alpha is None else head_share(q, p, alpha)
    forward = -_sum(p, gap)
    into_p = p.sub_(q)
    reverse = _through_softmax(q, gap)
    if w is None:
        q.sub_(into_p)
        return forward + reverse
    q.mul_(1 - w[:, None]).sub_(into_p.mul_(w[:, None]))
    return w * forward + (1 - w) * reverse


def _probabilities(z: Logits, t: Logits) -> tuple[Logits, Logits, Logits]:
    """q and p in place of the logits, and log q - log p, which stays finite where both vanish."""
    gap = z - t
    (of_z, log_q), (of_t, log_p) = _normalise(z), _normalise(t)
    return z, t, gap.sub_(of_z - of_t - (log_q - log_p))


def _normalise(z: Logits) -> tuple[Float[Tensor, "tokens 1"], Float[Tensor, "tokens 1"]]:
    """Softmax in place; gives the largest logit and its log-probability, so that log q = z - the one + the other."""
    largest = z.amax(-1, keepdim=True)
    return largest, torch.softmax(z, -1, out=z).amax(-1, keepdim=True).log_()


def _log_ratio(a: Logits, m: Logits) -> Logits:
    """log(a / m) for a mixture m that holds a share of a, to the machine's precision times m / a.

    A ratio below that precision counts as that precision: times `a`, as it always is, that differs by nothing. `m` is
    kept above zero, where it vanishes `a` does.
    """
    limits = torch.finfo(m.dtype)
    return torch.div(a, m.clamp_(min=limits.tiny)).sub_(1).clamp_(min=limits.eps / 2 - 1).log1p_()


def _through_softmax(q: Logits, rho: Logits) -> Values:
    """In place of q: q (rho - sum q rho). Gives that sum."""
    total = _sum(q, rho)
    q.mul_(rho.sub_(total[:, None]))
    return total


def _sum(a: Logits, b: Logits) -> Values:
    return torch.linalg.vecdot(a, b)
