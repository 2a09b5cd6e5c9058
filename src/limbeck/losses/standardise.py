"""Logits without their shift and their scale: z-scores, and the divergence between them.

A student of small capacity need not reach the teacher's magnitudes: what is compared is the shape of its logits.

Source: Sun et al. 2024, "Logit standardization in knowledge distillation", equation 10 and algorithm 1.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.losses.divergences import kl
from limbeck.losses.masking import keep, paired, widened

__all__ = ["standardised_kl"]

Values = Float[Tensor, "batch ..."]


def standardised_kl(
    student: Values,
    teacher: Values,
    *,
    temperature: float = 2.0,
    scale: bool = True,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """T^2 KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)), Z = `standardised`: `kl` of the z-scores of both.

    It does not change for a z + b, a > 0, of either side. One value per sample, token or pixel, in nats, fp32 at least.
    The arguments, and what is raised, are those of `limbeck.losses.kl`.
    """
    student, teacher = (standardised(keep(x, mask, dim), dim) for x in paired(student, teacher))
    return kl(student, teacher, temperature=temperature, scale=scale, dim=dim, mask=mask, weight=weight)


def standardised(logits: Values, dim: int = -1, eps: float = 1e-7) -> Values:
    """(z - mean z) / (eps + std z) over `dim`, with the unbiased deviation (divides by C - 1); fp32 at least.

    A logit of minus infinity is a class that is ruled out: it stays, and the mean and the deviation are the others'.
    Logits that are all the same (up to rounding), and a single one, have no scale: they become 0, without a gradient.
    """
    logits = widened(logits)
    out = torch.isneginf(logits)
    count = (~out).sum(dim, keepdim=True)
    offset, size = spread(logits, dim, ~out)
    scaled = offset / (eps + size / (count - 1).clamp(min=1).to(size.dtype).sqrt())
    return torch.where(size == 0, 0.0, scaled).masked_fill(out, -torch.inf)


def spread(x: Values, dim: int, mask: Bool[Tensor, "batch ..."] | None = None) -> tuple[Values, Values]:
    """x minus its mean over `dim`, and the length of that (`dim` kept at size 1); over the entries of `mask` alone.

    Entries that are all the same but for the rounding of their mean have the length 0 exactly, and neither has a
    gradient: their direction is that of the rounding. Where `mask` is False the offset is 0.
    """
    if mask is None:
        count, kept = torch.full_like(x.detach().sum(dim, keepdim=True), x.shape[dim]), x
    else:
        mask = mask.expand_as(x)
        count, kept = mask.sum(dim, keepdim=True), torch.where(mask, x, 0)
    offset = kept - kept.sum(dim, keepdim=True) / count.clamp(min=1)
    if mask is not None:
        offset = torch.where(mask, offset, 0)
    length, whole = (torch.linalg.vector_norm(y.detach(), dim=dim, keepdim=True) for y in (offset, kept))
    constant = length <= 8 * torch.finfo(x.dtype).eps * whole
    offset = torch.where(constant, 0, offset)
    return offset, torch.linalg.vector_norm(offset, dim=dim, keepdim=True)
