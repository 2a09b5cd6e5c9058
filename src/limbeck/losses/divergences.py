"""Divergences between the class distributions of a student and a teacher.

Conventions of all functions here. Both arguments are logits, student first; p = softmax(teacher / T) and
q = softmax(student / T) over `dim`. The class dimension is summed out and nothing else is reduced: logits [batch,
classes] give one value per sample, [batch, tokens, classes] one per token, [batch, classes, height, width] with
`dim=1` one per pixel. Values are in nats, in fp32 (fp64 for fp64), never negative, and exactly 0 for equal logits
(`js`: up to rounding).

- `temperature` T > 0. `scale` multiplies by T^2, which keeps the size of gradients about the same for every T
  (Hinton et al. 2015, section 2); without it the plain divergence of the softened distributions is returned.
- `mask` (bool, the shape of the result, or its first dimensions): where it is False the value is 0 and both gradients
  are exactly 0, even where logits are nan or infinite. `weight` (the same shapes) multiplies.
- A logit of minus infinity is a class of probability 0. A class that both rule out contributes nothing; where p > 0
  and q = 0, `kl` is infinite, as it must be (and so is `reverse_kl` where q > 0 and p = 0). `js` is always finite.
- Gradients flow into **both** arguments; nothing is detached. A frozen teacher simply has no graph.

Errors: `RecipeError` for different shapes, a temperature that is not above 0, or a mask that does not fit.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.masking import finished, keep, paired

__all__ = ["jeffreys", "js", "kl", "reverse_kl"]

Logits = Float[Tensor, "batch ..."]
Values = Float[Tensor, "batch ..."]


def kl(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """Forward divergence T^2 * KL(teacher || student) = T^2 * sum_c p_c (log p_c - log q_c): covers all modes.

    Gradient in the student's logits: T (q - p). For T to infinity it tends to the squared distance of the centred
    logits, sum_c ((t_c - mean t) - (s_c - mean s))^2 / (2 C), with C classes.

    Source: Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2 (there as a
    cross-entropy, which differs by the teacher's entropy).
    """
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    return finished_at(relative_entropy(log_p, log_q, dim), temperature, scale, mask, weight)


def reverse_kl(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """Reverse divergence T^2 * KL(student || teacher) = T^2 * sum_c q_c (log q_c - log p_c): seeks a mode.

    Source: Gu et al. 2024, "MiniLLM", equation 1 (there over sequences).
    """
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    return finished_at(relative_entropy(log_q, log_p, dim), temperature, scale, mask, weight)


def jeffreys(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """The sum (not the mean) of both directions, T^2 * (KL(p || q) + KL(q || p)); symmetric in its arguments.

    With gradients in both arguments this is the pair term of mutual learning (Zhang et al. 2018).

    Source: Jeffreys 1946, "An invariant form for the prior probability in estimation problems".
    """
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    both = relative_entropy(log_p, log_q, dim) + relative_entropy(log_q, log_p, dim)
    return finished_at(both, temperature, scale, mask, weight)


def js(
    student: Logits,
    teacher: Logits,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """Generalised Jensen-Shannon divergence T^2 * (beta KL(p || m) + (1 - beta) KL(q || m)), m = beta p + (1 - beta) q.

    At most T^2 * H(beta), H the entropy of a coin (log 2 at 0.5), and finite even for disjoint distributions. Symmetric
    at beta = 0.5. js / beta tends to `kl` for beta to 0, js / (1 - beta) to `reverse_kl` for beta to 1; at 0 and 1
    itself it would be 0 everywhere, so these are refused.

    Source: Agarwal et al. 2024, "On-policy distillation of language models", equation 1 of section 2.

    Raises:
        RecipeError: `beta` is not strictly between 0 and 1.
    """
    if not 0 < beta < 1:
        raise RecipeError(
            f"js with beta={beta}: needed is a number strictly between 0 and 1, because at 0 and 1 it is zero for "
            "any two distributions. Its limits have names of their own: kl (beta to 0) and reverse-kl (beta to 1)."
        )
    log_q, log_p = log_probabilities(student, teacher, temperature, dim, mask)
    mixed = mixture(log_p, log_q, beta)
    both = beta * relative_entropy(log_p, mixed, dim) + (1 - beta) * relative_entropy(log_q, mixed, dim)
    return finished_at(both, temperature, scale, mask, weight)


def log_probabilities(
    student: Logits, teacher: Logits, temperature: float, dim: int, mask: Bool[Tensor, "batch ..."] | None
) -> tuple[Logits, Logits]:
    """log q and log p of logits at a temperature; of zeros where `mask` is False."""
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature}: needed is a number above 0; 1 leaves the logits as they are.")
    student, teacher = (keep(x, mask, dim) for x in paired(student, teacher))
    if temperature != 1:
        student, teacher = student / temperature, teacher / temperature
    return torch.log_softmax(student, dim), torch.log_softmax(teacher, dim)


def relative_entropy(log_a: Logits, log_b: Logits, dim: int) -> Values:
    """sum a (log a - log b), where a class with a = 0 (also by underflow) contributes 0 and has no gradient."""
    a = log_a.exp()
    difference = torch.where(a == 0, 0, log_a - log_b)
    values = (a * difference).sum(dim)  # not a vecdot, which autocast would take in half precision
    return values - values.detach().clamp(max=0.0)  # rounding may leave -1e-9: shown as 0, its gradient kept


def mixture(log_a: Logits, log_b: Logits, share: float) -> Logits:
    """log(share a + (1 - share) b), whose gradient is 0 where both are (that of logaddexp would be nan)."""
    neither = torch.isneginf(log_a) & torch.isneginf(log_b)
    mixed = torch.logaddexp(
        log_a.masked_fill(neither, 0.0) + math.log(share), log_b.masked_fill(neither, 0.0) + math.log1p(-share)
    )
    return mixed.masked_fill(neither, -math.inf)


def finished_at(
    values: Values,
    temperature: float,
    scale: bool,
    mask: Bool[Tensor, "batch ..."] | None,
    weight: Float[Tensor, "batch ..."] | None,
) -> Values:
    """The values of a divergence at a temperature, times T^2 if `scale`, and `finished`."""
    return finished(values * temperature**2 if scale else values, mask, weight)
