"""Feature norm and direction: along the teacher's class mean, and at least as long as the teacher's feature."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.masking import finished, keep, paired, widened
from limbeck.losses.vectors import unit

__all__ = ["norm_and_direction"]


def norm_and_direction(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    *,
    target: Int[Tensor, "batch"],
    centres: Float[Tensor, "classes width"],
    mask: Bool[Tensor, "batch"] | None = None,
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, "batch"]:
    """1 - <s, e_y> / max(|s|, |t|), where e_y is the direction of the teacher's mean feature of the sample's class.

    In [0, 2]; 0 exactly when s = k e_y with k >= |t|. While |s| < |t| the gradient in s is -e_y / |t|: it turns s and
    makes it longer. From |s| >= |t| on it is 1 - cos(s, e_y), which no longer depends on the length of s. A class
    without a mean (zeros) gives 1, without a gradient; both features zero likewise.

    Args:
        student: features [batch, width].
        teacher: the same; only their lengths are read.
        target: class numbers. A target below 0 does not count.
        centres: class means [classes, width] (see `class_sums`).
        mask: samples that count; the others are exactly 0 without a gradient.
        weight: multiplies.

    Source: Wang et al. 2023, "Improving knowledge distillation via regularizing feature norm and direction", arXiv
    2305.17007, and its released code (one sample at a time there, the same number).
    """
    counts = target >= 0 if mask is None else (target >= 0) & mask.bool()
    student, teacher = (keep(x, counts, -1) for x in paired(student, teacher))
    if centres.dim() != 2 or centres.shape[1] != student.shape[-1]:
        raise RecipeError(
            f"norm-and-direction was given class means of shape {list(centres.shape)}; needed is [classes, "
            f"{student.shape[-1]}], the width of the features."
        )
    towards = unit(widened(centres).to(student.dtype))[target.clamp(min=0)]
    longer = torch.maximum(torch.linalg.vector_norm(student, dim=-1), torch.linalg.vector_norm(teacher, dim=-1))
    along = (student * towards).sum(-1)
    return finished(1 - along / torch.where(longer > 0, longer, 1.0), counts, weight)


def class_sums(
    features: Float[Tensor, "batch width"], target: Int[Tensor, "batch"], classes: int
) -> tuple[Float[Tensor, "classes width"], Float[Tensor, "classes"]]:
    """The sum of the features of each class and how many there are, in float64: to be added up over batches.

    The mean is their quotient. Targets below 0 do not count.
    """
    known = target >= 0
    features, target = features[known].double(), target[known]
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, target, features)
    return sums, torch.bincount(target, minlength=classes).to(sums)
