"""Centred kernel alignment: do two representations place the same samples in the same way?

A relation between samples, so a loss here is of **batch scope**: it looks at all samples together and gives one
number (`Term(cka, ..., scope="batch")`, `Loss.batch`). Features of any shape are flattened to one row per sample;
student and teacher may have any widths, and no bridge is needed.

Source: Kornblith et al. 2019, "Similarity of neural network representations revisited", equations 2 to 4; the unbiased
estimate: Song et al. 2012, used over minibatches by Nguyen, Raghu and Kornblith 2021, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.columns import products
from limbeck.losses.masking import widened

__all__ = ["cka"]

Rows = Float[Tensor, "samples ..."]
Kernel = Float[Tensor, "samples samples"]


def cka(
    student: Rows,
    teacher: Rows,
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    unbiased: bool = False,
    bandwidth: float = 1.0,
    mask: Bool[Tensor, "samples"] | None = None,
) -> Float[Tensor, ""]:
    """1 - `alignment(student, teacher)`: one number, 0 for the same representation up to rotation and scale.

    In [0, 1] (a little beyond it with `unbiased`). Fewer samples than the estimate needs (2; unbiased 4) say nothing:
    0, without a gradient. Gradients flow into **both** arguments.
    """
    if mask is not None:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
    if len(student) < (4 if unbiased else 2):
        return (widened(student) * 0.0).nansum()
    return 1 - alignment(student, teacher, kernel=kernel, unbiased=unbiased, bandwidth=bandwidth)


def alignment(
    x: Rows,
    y: Rows,
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    unbiased: bool = False,
    bandwidth: float = 1.0,
) -> Float[Tensor, ""]:
    """CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)), K and L the kernels of x and y.

    With the linear kernel this is |Y^T X|^2 / (|X^T X| |Y^T Y|) of centred features (Frobenius norms): the same for
    rotated, shifted and scaled features, but not for every invertible map. The biased estimate is in [0, 1] and tends
    to 1 where there are many more features than samples; the unbiased one does not, and may be below 0. Features that
    are the same for all samples align with nothing: 0, without a gradient.

    Args:
        x: features, first dimension the samples.
        y: features of the same samples.
        kernel: `linear`, or `rbf`: exp(-d^2 / (2 s^2)), s = `bandwidth` times the median distance of two samples.
        unbiased: the estimate of Song et al.; needs 4 samples.
        bandwidth: above 0.
    """
    return _ratio(_three(x, y, kernel, unbiased, bandwidth))


def minibatch_alignment(
    batches: Iterable[tuple[Rows, Rows]], *, kernel: Literal["linear", "rbf"] = "linear", bandwidth: float = 1.0
) -> Float[Tensor, ""]:
    """CKA over a data set that is not held at once: unbiased HSICs are summed over its batches, then divided.

    A mean of ratios would be another number. The batches (pairs of x and y) should be of one size, at least 4.
    """
    sums = [_three(x, y, kernel, True, bandwidth) for x, y in batches]
    if not sums:
        raise RecipeError("minibatch alignment was given no batches.")
    return _ratio(torch.stack(sums).sum(0))


def hsic(k: Kernel, other: Kernel, *, unbiased: bool = False) -> Float[Tensor, ""]:
    """How much two kernels over the same n samples have in common (Hilbert-Schmidt independence criterion).

    Biased: tr(K H L H) / (n - 1)^2, H = I - 1/n. Unbiased (Song et al., equation 5), with zero diagonals:
    (tr(K L) + sum K sum L / ((n - 1)(n - 2)) - 2 sum(K L) / (n - 2)) / (n (n - 3)).

    Raises:
        RecipeError: fewer than 2 samples, or than 4 for the unbiased estimate.
    """
    n, needed = len(k), 4 if unbiased else 2
    if n < needed:
        raise RecipeError(f"centred kernel alignment of {n} samples: needed are at least {needed}.")
    if not unbiased:
        return (_centred(k) * _centred(other)).sum() / (n - 1) ** 2
    off = ~torch.eye(n, dtype=torch.bool, device=k.device)
    k, other = k * off, other * off
    cross = k.sum(0) @ other.sum(0)
    whole = k.sum() * other.sum()
    return ((k * other).sum() + whole / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)) / (n * (n - 3))


def _three(x: Rows, y: Rows, kernel: str, unbiased: bool, bandwidth: float) -> Float[Tensor, "3"]:
    if len(x) != len(y):
        raise RecipeError(
            f"centred kernel alignment compares the same samples: {len(x)} of the student, {len(y)} of the teacher."
        )
    k, other = (_kernel(z, kernel, bandwidth) for z in (x, y))
    pairs = ((k, other), (k, k), (other, other))
    return torch.stack([hsic(a, b, unbiased=unbiased).double() for a, b in pairs]).to(
        torch.promote_types(k.dtype, other.dtype)
    )


def _kernel(x: Rows, kernel: str, bandwidth: float) -> Kernel:
    """Of rows shifted to mean 0 and scaled to largest entry about 1, which changes no alignment and prevents overflow."""
    x = widened(x).flatten(1)
    x = x - x.mean(0)
    largest = x.detach().abs().amax()
    x = x / torch.where(largest > 0, largest, 1.0)
    inner = products(x, x)
    if kernel == "linear":
        return inner
    if kernel != "rbf":
        raise RecipeError(f"cka with kernel '{kernel}': there is linear and rbf.")
    if not bandwidth > 0:
        raise RecipeError(f"cka with bandwidth={bandwidth}: needed is a number above 0.")
    lengths = inner.diagonal()
    squared = (lengths[:, None] + lengths[None, :] - 2 * inner).clamp(min=0)
    n = len(x)
    off = squared[~torch.eye(n, dtype=torch.bool, device=x.device)]
    middle = off.median() if len(off) else off.sum()
    return torch.exp(-squared / (2 * bandwidth**2 * torch.where(middle > 0, middle, 1.0)))


def _centred(k: Kernel) -> Kernel:
    return k - k.mean(0, keepdim=True) - k.mean(1, keepdim=True) + k.mean()


def _ratio(three: Float[Tensor, "3"]) -> Float[Tensor, ""]:
    both, own, other = three
    measurable = (own > 0) & (other > 0)
    scale = torch.where(measurable, own, 1.0).sqrt() * torch.where(measurable, other, 1.0).sqrt()
    return torch.where(measurable, both / scale, 0.0)
