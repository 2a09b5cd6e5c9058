"""The loss of one-for-all distillation: a soft cross-entropy whose target class is sharpened by an exponent."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.masking import finished, keep, paired, widened

__all__ = ["ofa"]

Logits = Float[Tensor, "batch classes"]


def ofa(
    student: Logits,
    teacher: Logits,
    *,
    target: Num[Tensor, "batch ..."],
    exponent: float = 1.0,
    temperature: float = 1.0,
    mask: Bool[Tensor, "batch"] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """-sum_c [(p_c + m_c)^e - m_c] log q_c per sample, p = softmax(teacher / T), q = softmax(student / T), m = one-hot.

    With e = 1 it is the cross-entropy of q under p, so its gradient is that of KD at this temperature (without T^2,
    which the method does not have). With e > 1 the target class counts more than p (its factor is (1 + p)^e - 1) and
    every other one less (p^e); the factors then sum to something else than 1, so gradients grow with e.

    Logits [batch, classes]; `target` holds classes, or soft labels [batch, classes], whose largest entry is the class.
    Gradients flow into both logits. In nats, fp32 (fp64 for fp64).

    Source: Hao et al. 2023, "One-for-All: bridge the gap between heterogeneous architectures in knowledge
    distillation", equations 5 and 6.

    Raises:
        RecipeError: different shapes, or an exponent or a temperature that is not above 0.
    """
    paired(student, teacher)
    student, teacher = keep(student, mask, -1), keep(teacher, mask, -1)
    share = sharpened(teacher, target, exponent=exponent, temperature=temperature)
    return finished(sharpened_cross_entropy(student, share, temperature=temperature), mask, weight)


def sharpened(
    teacher: Logits, target: Num[Tensor, "batch ..."], *, exponent: float = 1.0, temperature: float = 1.0
) -> Logits:
    """The factors (p_c + m_c)^e - m_c: the same for every exit of a student, so they are computed once.

    Raises:
        RecipeError: an exponent or a temperature that is not above 0.
    """
    for name, value in (("exponent", exponent), ("temperature", temperature)):
        if not value > 0:
            raise RecipeError(f"ofa with {name}={value}: needed is a number above 0.")
    log_p = _log_probabilities(teacher, temperature)
    if exponent == 1:
        return log_p.exp()  # p itself, whatever the class is
    right = (target.argmax(-1) if target.dim() > 1 else target).unsqueeze(-1)
    own = log_p.gather(-1, right).exp()
    return (exponent * log_p).exp().scatter(-1, right, (1 + own).pow(exponent) - 1)


def sharpened_cross_entropy(
    student: Float[Tensor, "*batch classes"], share: Float[Tensor, "*batch classes"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch"]:
    """-sum_c share_c log softmax(student / T)_c. A class that the student rules out and whose share is 0 adds nothing."""
    log_q = _log_probabilities(student, temperature).masked_fill(share == 0, 0.0)
    return -(share * log_q).sum(-1)


def _log_probabilities(logits: Float[Tensor, "*batch classes"], temperature: float) -> Float[Tensor, "*batch classes"]:
    logits = widened(logits)
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, -1)
