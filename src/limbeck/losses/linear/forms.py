"""The divergences themselves: value per token and gradient in the student's logits, from log-probabilities of a chunk.

Each is called with log q (student), log p (teacher) and a room, all [tokens, classes], and gives `(values, gradient)`: the value
per token and its derivative in the logits z of q = softmax(z), as written out in each docstring. Where D depends on z
through q alone, with r_c = q_c dD/dq_c, that derivative is r - q sum(r). All three are owned by the function and
overwritten: a chunk of a large vocabulary is never copied without need. Log-probabilities must be finite; one whose
exponential vanishes contributes nothing. `room` is a third tensor of their shape, whose content does not matter.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.token_divergences import head_share

__all__: list[str] = []  # no loss: these are its inner part

LogProbabilities = Float[Tensor, "tokens classes"]
Values = Float[Tensor, "tokens"]
Result = tuple[Values, Float[Tensor, "tokens classes"]]


def kl(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor) -> Result:
    """sum p (log p - log q); gradient q - p."""
    p = torch.exp(log_p, out=room)
    values = log_p.sub_(log_q).mul_(p).sum(-1)
    return values, log_q.exp_().sub_(p)


def reverse_kl(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor) -> Result:
    """R = sum q (log q - log p); gradient q (log q - log p - R)."""
    q = torch.exp(log_q, out=room)
    gap = log_q.sub_(log_p)
    values = torch.mul(q, gap, out=log_p).sum(-1)
    return values, gap.sub_(values[:, None]).mul_(q)


def jeffreys(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor) -> Result:
    """The sum of both directions."""
    values, gradient = kl(log_q.clone(), log_p.clone(), room)
    reverse, more = reverse_kl(log_q, log_p, room)
    return values + reverse, gradient.add_(more)


def js(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor, *, beta: float) -> Result:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q; r = (1 - beta) q log(q / m)."""
    q, p = torch.exp(log_q, out=room), log_p.exp()
    m = torch.lerp(q, p, beta)
    log_m = m.clamp_(min=torch.finfo(m.dtype).tiny).log_()  # finite also where p and q vanish
    from_p = log_p.sub_(log_m).mul_(p).sum(-1)
    r = log_q.sub_(log_m).mul_(q)
    from_q = r.sum(-1)
    gradient = r.sub_(q.mul_(from_q[:, None])).mul_(1 - beta)
    return beta * from_p + (1 - beta) * from_q, gradient


def continuous_js(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor, *, beta: float) -> Result:
    """The same over beta (1 - beta)."""
    values, gradient = js(log_q, log_p, room, beta=beta)
    return values / (beta * (1 - beta)), gradient.div_(beta * (1 - beta))


def skew_kl(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor, *, alpha: float) -> Result:
    """KL(p || m), m = alpha p + (1 - alpha) q; r = -(1 - alpha) q p / m."""
    q, p = torch.exp(log_q, out=room), log_p.exp()
    m = torch.lerp(q, p, alpha)
    log_m = _log(m)  # which raises what vanishes in m as well, so that the division is by no zero
    values = log_p.sub_(log_m).mul_(p).sum(-1)
    return values, _through_softmax(p.mul_(q).div_(m).mul_(alpha - 1), q)


def skew_reverse_kl(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor, *, alpha: float) -> Result:
    """KL(q || m), m = (1 - alpha) p + alpha q; r = q (log(q / m) + 1 - alpha q / m)."""
    q, p = torch.exp(log_q, out=room), log_p.exp()
    m = torch.lerp(p, q, alpha)
    gap = log_q.sub_(_log(m))
    values = torch.mul(q, gap, out=p).sum(-1)
    return values, _through_softmax(gap.sub_(m.reciprocal_().mul_(q).mul_(alpha)).mul_(q), q)  # q times 1 cancels


def tvd(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor) -> Result:
    """sum |p - q| / 2; r = q sign(q - p) / 2 (0 where they are equal)."""
    q = log_q.exp_()
    gap = torch.sub(q, log_p.exp_(), out=log_p)
    values = gap.abs().sum(-1) / 2
    return values, _through_softmax(gap.sign_().mul_(q).div_(2), q)


def adaptive_kl(log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor, *, alpha: float) -> Result:
    """w KL(p || q) + (1 - w) KL(q || p), w (a constant for the gradient) the part of sum |p - q| in the head of p."""
    w = head_share(log_q.exp(), log_p.exp(), alpha)
    values, gradient = kl(log_q.clone(), log_p.clone(), room)
    reverse, more = reverse_kl(log_q, log_p, room)
    gradient.mul_(w[:, None]).add_(more.mul_(1 - w[:, None]))
    return w * values + (1 - w) * reverse, gradient


def top_k_kl(
    log_q: LogProbabilities, log_p: LogProbabilities, room: Tensor, *, k: int, renormalise_student: bool
) -> Result:
    """KL(p' || q), p' = p on its k largest classes, divided by their sum; gradient q - p' (q' - p' with q' likewise)."""
    log_p, top = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
    log_p = log_p.log_softmax(-1)
    p, chosen = log_p.exp(), log_q.gather(-1, top)
    if renormalise_student:
        chosen = chosen.log_softmax(-1)
        gradient = log_q.zero_().scatter_(-1, top, chosen.exp() - p)
    else:
        gradient = log_q.exp_().scatter_add_(-1, top, -p)
    return (p * (log_p - chosen)).sum(-1), gradient


def _log(m: Tensor) -> Tensor:
    """log m, finite also where a mixture vanishes (there both of its parts do); `m` is kept above zero."""
    return m.clamp_(min=torch.finfo(m.dtype).tiny).log()


def _through_softmax(r: Tensor, q: Tensor) -> Tensor:
    """r - q sum(r): what a derivative in log q is in the logits."""
    return r.sub_(q.mul_(r.sum(-1, keepdim=True)))


BUFFERS: dict[object, int] = {kl: 3, reverse_kl: 3, js: 5, continuous_js: 5, tvd: 4}
"""How many chunks of logits a form has at once, its three arguments included; those that are not here have up to 8."""
