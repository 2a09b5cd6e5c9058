"""A prediction in two halves: how much it gives the right class, and how it spreads the rest over the others.

With p = softmax(teacher / T), q = softmax(student / T) and the label y,

    KL(p || q) = KL(b_p || b_q) + (1 - p_y) KL(p' || q'),     b = [p_y, 1 - p_y],     p'_c = p_c / (1 - p_y) for c != y,

so that halves may be weighed on their own (Zhao et al. 2022, "Decoupled knowledge distillation", equation 5).

The conventions are those of `limbeck.losses.divergences`: logits, student first; one value per label, in nats, fp32 at
least; gradients into both arguments; `mask` cuts value and gradients to exactly 0; `scale` multiplies by T^2. Besides:

- `target`: int64, the shape of the result. A label below 0 is no label: the entry is masked, and whoever takes a mean
  leaves it out of the count.
- 1 - p_y is never formed: its logarithm is a log-sum-exp over the other classes, so a sure teacher (p_y = 1 in fp32) is
  as exact as an unsure one. Where a teacher rules out all others, they have no distribution, and the half about them is
  0; so it is with a single class.

Errors: `RecipeError` for different shapes, labels of another shape, a temperature that is not above 0, a mask that does
not fit; `IndexError` or `RuntimeError` of torch for a label that is no class.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.classification import soft_cross_entropy
from limbeck.losses.divergences import kl
from limbeck.losses.masking import aligned, finished, keep, paired

__all__ = ["nontarget_cross_entropy", "nontarget_kl", "target_cross_entropy", "target_kl"]

Logits = Float[Tensor, "batch ..."]
Labels = Int64[Tensor, "batch ..."]
Values = Float[Tensor, "batch ..."]
Mask = Bool[Tensor, "batch ..."]


def target_kl(
    student: Logits,
    teacher: Logits,
    target: Labels,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """T^2 KL(b_p || b_q), b = [p_y, 1 - p_y]: is it this class or another? The TCKD of Zhao et al., equation 6."""
    student, teacher, target, mask = _labelled(student, teacher, target, dim, mask)
    ours, theirs = (against_the_rest(x, target, temperature=temperature, dim=dim) for x in (student, teacher))
    return kl(ours, theirs, temperature=temperature, scale=scale, mask=mask, weight=weight)


def nontarget_kl(
    student: Logits,
    teacher: Logits,
    target: Labels,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """T^2 KL(p' || q'), the softmaxes over all classes but the label's. The NCKD of Zhao et al., equation 6."""
    ours, theirs, mask = _others(student, teacher, target, dim, mask)
    return kl(ours, theirs, temperature=temperature, scale=scale, dim=dim, mask=mask, weight=weight)


def nontarget_cross_entropy(
    student: Logits,
    teacher: Logits,
    target: Labels,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """-T^2 sum over c != y of p'_c log q'_c: `nontarget_kl` plus the entropy of p', so the same gradient in the student.

    Source: Yang et al. 2023, "From knowledge distillation to self-knowledge distillation", the non-target part of NKD.
    """
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature}: needed is a number above 0; 1 leaves the logits as they are.")
    ours, theirs, mask = _others(student, teacher, target, dim, mask)
    spread = torch.softmax(keep(theirs, mask, dim) / temperature, dim)
    values = soft_cross_entropy(ours / temperature, spread, dim=dim, mask=mask, weight=weight)
    return values * temperature**2 if scale else values


def target_cross_entropy(
    student: Logits,
    teacher: Logits,
    target: Labels,
    *,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """-p_y log q_y: the labels' cross-entropy, weighed by how far the teacher agrees. Gradient in the student's logits:
    p_y (q - onehot(y)).

    Source: Yang et al. 2023, the target part of NKD (there at T = 1).
    """
    student, teacher, target, mask = _labelled(student, teacher, target, dim, mask)
    log_q, log_p = (
        torch.log_softmax(x, dim).gather(dim, target.unsqueeze(dim)).squeeze(dim) for x in (student, teacher)
    )
    p = log_p.exp()
    return finished(-p * log_q.masked_fill((p == 0) & torch.isneginf(log_q), 0.0), mask, weight)


def against_the_rest(
    logits: Logits, target: Labels, *, temperature: float = 1.0, dim: int = -1
) -> Float[Tensor, "batch ... 2"]:
    """Two logits in the last dimension, the label's and T log sum over c != y of exp(z_c / T): softmax_T = [p_y, 1 - p_y]."""
    right = logits.gather(dim, target.unsqueeze(dim)).squeeze(dim)
    others = without_target(logits, target, dim=dim)
    none = torch.isneginf(others).all(dim, keepdim=True)  # log-sum-exp of nothing has nan for a gradient
    rest = (
        torch.logsumexp(others.masked_fill(none, 0.0) / temperature, dim) if others.numel() else torch.zeros_like(right)
    )
    return torch.stack([right, (temperature * rest).masked_fill(none.squeeze(dim), -torch.inf)], -1)


def without_target(logits: Logits, target: Labels, *, dim: int = -1) -> Logits:
    """The logits with the label's at minus infinity, so that a softmax is over the others; of one class none is left."""
    if logits.shape[dim] == 1:
        return logits.narrow(dim, 0, 0)
    return logits.scatter(dim, target.unsqueeze(dim), -torch.inf)


def _others(
    student: Logits, teacher: Logits, target: Labels, dim: int, mask: Mask | None
) -> tuple[Logits, Logits, Mask]:
    student, teacher, target, mask = _labelled(student, teacher, target, dim, mask)
    ours, theirs = (without_target(x, target, dim=dim) for x in (student, teacher))
    return ours, theirs, mask & ~torch.isneginf(theirs).all(dim)


def _labelled(
    student: Logits, teacher: Logits, target: Labels, dim: int, mask: Mask | None
) -> tuple[Logits, Logits, Labels, Mask]:
    """Widened logits without what is masked, labels that all are classes, and the mask of what counts."""
    student, teacher = paired(student, teacher)
    shape = torch.Size(n for i, n in enumerate(student.shape) if i != dim % student.dim())
    if target.shape != shape or target.is_floating_point():
        raise RecipeError(
            f"labels are {str(target.dtype).removeprefix('torch.')} {list(target.shape)}, logits {list(student.shape)} with "
            f"classes in dimension {dim}; needed are class numbers (int64) of shape {list(shape)}."
        )
    labelled = target >= 0
    mask = labelled if mask is None else labelled & aligned(mask.bool(), shape, "mask")
    return keep(student, mask, dim), keep(teacher, mask, dim), target.where(mask, 0), mask
