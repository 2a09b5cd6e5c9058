"""Contrast: of many candidates, the right one is to be found. With the batch as candidates, or with a memory.

`info_nce` is of **batch scope** (its candidates are the other samples) and gives one value per sample that counts;
`nce` gives one value per sample and needs nothing of the others. Computed in fp32 (fp64 for fp64), under autocast too;
gradients flow into every argument that has one.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import paired, widened
from limbeck.losses.vectors import unit

__all__ = ["info_nce"]


def info_nce(
    student: Float[Tensor, "batch width"],
    teacher: Float[Tensor, "batch width"],
    *,
    temperature: float = 0.07,
    mask: Bool[Tensor, "batch"] | None = None,
) -> Float[Tensor, "counted"]:
    """-log softmax_j(cos(s_i, t_j) / temperature) at j = i: each student must find its own teacher among all.

    From 0 to log(n) + 2 / temperature for n samples; exactly log(n) where all are alike. Scaling any vector of either
    side changes nothing. `mask` leaves samples out, as anchors and as candidates.

    Source: van den Oord et al. 2018, "Representation learning with contrastive predictive coding", equation 4.

    Raises:
        RecipeError: different shapes, or a temperature that is not above 0.
    """
    if not temperature > 0:
        raise RecipeError(f"info-nce with temperature {temperature}: needed is a number above 0.")
    student, teacher = paired(student, teacher)
    if mask is not None:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
    with torch.autocast(student.device.type, enabled=False):
        cosines = unit(student) @ unit(teacher).T
    return -(cosines / temperature).log_softmax(-1).diagonal()


def nce(
    positive: Float[Tensor, "batch"],
    negatives: Float[Tensor, "batch draws"],
    log_normaliser: Float[Tensor, ""] | float,
    rows: int,
) -> Float[Tensor, "batch"]:
    """-log h(positive) - sum over negatives of log(1 - h): is a candidate data, or drawn at random?

    h = o / (o + K / rows), o = exp(score) / Z: the probability that a candidate is data, when K of noise, drawn evenly
    from `rows`, come with each. Scores are already divided by the temperature; `log_normaliser` is log Z. Computed as
    logistic losses of log o - log(K / rows), which need no small number against zero.

    Source: Gutmann and Hyvaerinen 2010, "Noise-contrastive estimation"; Tian, Krishnan and Isola 2020, "Contrastive
    representation distillation", equation 19 and the released code.
    """
    shift = math.log(negatives.shape[1] / rows) + log_normaliser
    return F.softplus(shift - widened(positive)) + F.softplus(widened(negatives) - shift).sum(1)


def memory_scores(
    bank: Float[Tensor, "rows width"], queries: Float[Tensor, "batch width"], entries: Int64[Tensor, "batch picks"]
) -> Float[Tensor, "batch picks"]:
    """Inner products of each query with its own entries of a bank that does not learn: `<bank[entries[b, k]], queries[b]>`.

    Copying out the entries costs their width each. Where the bank is not very much larger than the number of picks, it
    is cheaper (20 times, at 50,000 rows and 16,384 picks of width 128) to take the products with all rows and pick.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries = widened(queries)
        if len(bank) <= 32 * entries.shape[1]:
            return (queries @ bank.T).gather(1, entries)
        return torch.bmm(
            bank.index_select(0, entries.flatten()).view(*entries.shape, -1), queries.unsqueeze(2)
        ).squeeze(2)
