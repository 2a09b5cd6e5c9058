"""Cross-entropies of a student's logits against what is right: labels, probabilities, or several labels at once.

The class dimension is summed out and nothing else is reduced, as in `limbeck.losses.divergences`; values are in nats,
in fp32 (fp64 for fp64). Where `mask` (bool, the shape of the result, or its first dimensions) is False, the value and
the gradients are exactly 0, even where logits are nan or infinite; `weight` (the same shapes) multiplies. Gradients
flow into the logits and into targets that are probabilities.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, finished, keep, paired, widened

__all__ = ["binary_cross_entropy", "cross_entropy", "soft_cross_entropy"]

Values = Float[Tensor, "batch ..."]

_NO_LABEL = -(2**62)  # what no data set uses for a label


def cross_entropy(
    student: Float[Tensor, "batch ..."],
    target: Int64[Tensor, "batch ..."],
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = -100,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """-log q_y with q = softmax(student): one value per label.

    With `label_smoothing` e in [0, 1] the target is (1 - e) * onehot(y) + e / C, so the value is
    (1 - e) * -log q_y + e * mean_c -log q_c.

    An entry whose label is `ignore_index` is masked: it gives 0, and whoever takes a mean must leave it out of the
    count as well (`Loss.mean(name, values, target != ignore_index)`). None: no label is ignored.

    Source of the smoothing: Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.

    Raises:
        RecipeError: `target` does not have the shape of `student` without `dim`, or `label_smoothing` is not in [0, 1].
        IndexError: a label that counts is no class (on a GPU torch reports this later, as a device-side assertion).
    """
    if not 0 <= label_smoothing <= 1:
        raise RecipeError(f"label_smoothing={label_smoothing}: needed is a number from 0 to 1.")
    shape = torch.Size(n for i, n in enumerate(student.shape) if i != dim % student.dim())
    if target.shape != shape:
        raise RecipeError(
            f"labels have shape {list(target.shape)}, logits {list(student.shape)} with classes in dimension {dim}; "
            f"needed are labels of shape {list(shape)}."
        )
    ignored = _NO_LABEL if ignore_index is None else ignore_index
    if mask is not None:
        target = target.masked_fill(~aligned(mask.bool(), shape, "mask"), ignored)
    if mask is not None or ignore_index is not None:
        mask = target != ignored
    logits = keep(widened(student), mask, dim)
    values = F.cross_entropy(
        logits.movedim(dim, 1) if student.dim() > 2 else logits,
        target,
        ignore_index=ignored,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return finished(values, None if weight is None else mask, weight)


def soft_cross_entropy(
    student: Float[Tensor, "batch ..."],
    teacher: Float[Tensor, "batch ..."],
    *,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """-sum_c p_c log q_c with q = softmax(student) and `teacher` = p, already **probabilities** (or any target >= 0).

    It is KL(p || q) plus the entropy of p. A class with p_c = 0 contributes 0, also where the student rules it out
    (a logit of minus infinity). To compare two sets of logits use `kl`, which is 0 for equal ones.

    Raises:
        RecipeError: different shapes.
    """
    student, teacher = (keep(x, mask, dim) for x in paired(student, teacher))
    log_q = torch.log_softmax(student, dim)
    log_q = log_q.masked_fill((teacher == 0) & torch.isneginf(log_q), 0.0)
    return finished(-(teacher * log_q).sum(dim), mask, weight)


def binary_cross_entropy(
    student: Float[Tensor, "batch ..."],
    target: Num[Tensor, "batch ..."],
    *,
    dim: int = -1,
    mask: Bool[Tensor, "batch ..."] | None = None,
    weight: Float[Tensor, "batch ..."] | None = None,
) -> Values:
    """mean_c -(y_c log sigmoid(s_c) + (1 - y_c) log(1 - sigmoid(s_c))): the **mean** over the classes of `dim`.

    `target` y holds, for every class on its own, 0 or 1 or a probability; any number type. A logit of minus (plus)
    infinity with y = 0 (1) contributes 0.

    Raises:
        RecipeError: different shapes.
    """
    student, target = (keep(x, mask, dim) for x in paired(student, target))
    yes, no = F.logsigmoid(student), F.logsigmoid(-student)
    yes = yes.masked_fill((target == 0) & torch.isneginf(yes), 0.0)
    no = no.masked_fill((target == 1) & torch.isneginf(no), 0.0)
    return finished(-(target * yes + (1 - target) * no).mean(dim), mask, weight)
