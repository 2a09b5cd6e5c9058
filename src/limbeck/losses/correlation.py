"""How two sets of predictions agree up to shift and scale: Pearson's correlation, along a sample and along a class.

With Y = softmax(logits / T) and rho(a, b) = <a - mean a, b - mean b> / (|a - mean a| |b - mean b| + eps), the student
may be as much less sure as it likes, as long as it puts classes, and samples, in the teacher's proportions. The
correlation is taken of probabilities, not of logits. What is constant (up to rounding) has no correlation: its rho
counts as 0, without a gradient.

Logits, student first; gradients into both; fp32 at least; T > 0, and `scale` multiplies by T^2. `mask` (bool; the shape of the values
of `pearson_samples`, or its first dimensions): what is False does not enter any mean, and its gradients are exactly 0.

Source: Huang et al. 2022, "Knowledge distillation from a stronger teacher" (DIST), equations 4 to 10.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, finished, keep, paired
from limbeck.losses.standardise import spread

__all__ = ["pearson_classes", "pearson_samples"]

Logits = Float[Tensor, "batch ..."]
Mask = Bool[Tensor, "batch ..."]


def pearson_samples(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    eps: float = 1e-8,
    dim: int = -1,
    mask: Mask | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Float[Tensor, "batch ..."]:
    """T^2 (1 - rho) over the classes of `dim`: one value per sample, token or pixel, from 0 to 2 T^2 (inter-class relation).

    It is 0 where the student's probabilities are a * the teacher's + b with a > 0, and does not change for such a change.
    """
    ours, theirs = _probabilities(student, teacher, temperature, dim, mask)
    values = 1 - correlation(ours, theirs, dim=dim, eps=eps)
    return finished(values * temperature**2 if scale else values, mask, weight)


def pearson_classes(
    student: Logits,
    teacher: Logits,
    *,
    temperature: float = 1.0,
    scale: bool = True,
    eps: float = 1e-8,
    dim: int = -1,
    mask: Mask | None = None,
) -> Float[Tensor, ""]:
    """T^2 (1 - mean over the classes of rho), rho over the samples (times tokens or pixels): **one number for a batch**
    (intra-class relation), so give it to a term with scope="batch", which is never cut.

    A class whose probability hardly varies in the batch has a noisy rho: it wants many more samples than one.
    Nothing that counts: 0.
    """
    ours, theirs = (x.movedim(dim, -1) for x in _probabilities(student, teacher, temperature, dim, mask))
    rows = None
    if mask is not None:
        rows = aligned(mask.bool(), ours.shape[:-1], "mask").expand(ours.shape[:-1]).reshape(-1, 1)
    ours, theirs = (x.reshape(-1, x.shape[-1]) for x in (ours, theirs))
    values = 1 - correlation(ours, theirs, dim=0, eps=eps, mask=rows)
    value = values.mean() * temperature**2 if scale else values.mean()
    return value if rows is None else torch.where(rows.any(), value, 0)


def correlation(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], *, dim: int = -1, eps: float = 1e-8, mask: Mask | None = None
) -> Float[Tensor, "..."]:
    """Pearson's rho of `a` and `b` over `dim` (which goes), in [-1, 1]; over the entries of `mask` alone."""
    (x, length_x), (y, length_y) = spread(a, dim, mask), spread(b, dim, mask)
    return (x * y).sum(dim) / (length_x * length_y + eps).squeeze(dim)


def _probabilities(
    student: Logits, teacher: Logits, temperature: float, dim: int, mask: Mask | None
) -> tuple[Logits, Logits]:
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature}: needed is a number above 0; 1 leaves the logits as they are.")
    student, teacher = (keep(x, mask, dim) / temperature for x in paired(student, teacher))
    return torch.softmax(student, dim), torch.softmax(teacher, dim)
