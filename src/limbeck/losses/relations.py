"""Relations between the samples of a batch: distances, angles and similarities that a student's features should share.

All functions here are of **batch scope**: they look at every pair (or triple) of the batch, so they are used with
`Term(..., scope="batch", bridge="none")` or `Loss.batch`, which never cut. Features are [batch, ...] and are flattened
to [batch, width]; the two widths may differ, because only relations are compared.

Each gives one value per sample that counts; their mean is the published loss. `mask` (bool, [batch]) leaves samples out
altogether, as anchors and as partners, without any gradient, even where they are nan. Computed in fp32 (fp64 for fp64),
under autocast too. Gradients flow into **both** arguments; nothing is detached.

Errors: `RecipeError` where the two have different numbers of samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import widened
from limbeck.losses.vectors import unit

__all__ = ["pkt", "rkd_angle", "rkd_distance", "similarity_preserving"]

Features = Float[Tensor, "batch ..."]
Mask = Bool[Tensor, "batch"] | None
Values = Float[Tensor, "counted"]


def rkd_distance(student: Features, teacher: Features, *, beta: float = 1.0, mask: Mask = None) -> Values:
    """Huber distance of all pairwise distances, each network's divided by their mean.

    Sample i: mean_j h(d_ij / m - d'_ij / m'), d_ij = ||x_i - x_j||, m = the mean of the positive d (with its gradient),
    h(u) = u^2 / (2 beta) where |u| < beta, else |u| - beta / 2. The mean is over all j, i itself among them.

    Unchanged when either side is rotated, shifted or scaled. Source: Park et al. 2019, "Relational knowledge
    distillation", equations 3 to 6. Time and memory: batch^2 (times the width in time).
    """
    ours, theirs = counted(student, teacher, mask)
    return F.smooth_l1_loss(_distances(ours), _distances(theirs), beta=beta, reduction="none").mean(1)


def rkd_angle(
    student: Features, teacher: Features, *, beta: float = 1.0, block: int = 128, mask: Mask = None
) -> Values:
    """Huber distance of the cosines of all angles that three samples make.

    Vertex i: mean over j, k of h(<e_ij, e_ik> - <e'_ij, e'_ik>), e_ij = (x_j - x_i) / ||x_j - x_i||, or 0 where the two
    are one point; h as in `rkd_distance`.

    Unchanged when either side is rotated, shifted or scaled. Source: Park et al. 2019, equations 7 to 9.

    Args:
        block: samples (at least 1) whose triples are compared; a larger batch is cut into runs of so many, because time
            and memory grow with their third power (128: 8 MB per network). Batches up to `block` are compared whole.
    """
    if block < 1:
        raise RecipeError(f"rkd-angle with block={block}: needed is a number of samples of at least 1.")
    ours, theirs = counted(student, teacher, mask)
    apart = [
        F.smooth_l1_loss(_cosines(s), _cosines(t), beta=beta, reduction="none").mean((1, 2))
        for s, t in zip(ours.split(block), theirs.split(block))
    ]
    return torch.cat(apart)


def similarity_preserving(student: Features, teacher: Features, *, mask: Mask = None) -> Values:
    """Squared difference of the similarity matrices, whose mean over the samples is ||G - G'||_F^2 / batch^2.

    G = X X^T with every row brought to length 1 (a row of zeros stays one). Sample i: sum_j (G_ij - G'_ij)^2 / batch.

    Unchanged when either side is rotated or scaled. Source: Tung and Mori 2019, "Similarity-preserving knowledge
    distillation", equations 1 to 4.
    """
    ours, theirs = counted(student, teacher, mask)
    gap = unit(_inner(ours)) - unit(_inner(theirs))
    return gap.square().mean(1)


def pkt(student: Features, teacher: Features, *, eps: float = 1e-7, mask: Mask = None) -> Values:
    """Divergence of the neighbourhoods: p_ij = K_ij / sum_k K_ik with K_ij = (1 + cos(x_i, x_j)) / 2.

    Sample i: mean_j p'_ij log((p'_ij + eps) / (p_ij + eps)), p' the teacher's: KL(p' || p) of a row divided by the batch,
    as released code has it, so that published weights (30000) mean the same. A sample is among its own neighbours.

    Unchanged when any sample of either side is scaled. Source: Passalis and Tefas 2018, "Learning deep representations
    with probabilistic knowledge transfer", equations 3 to 7 (cosine kernel).
    """
    q, p = (_neighbourhood(x) for x in counted(student, teacher, mask))
    return (p * ((p + eps).log() - (q + eps).log())).mean(1)


def counted(
    student: Features, teacher: Features, mask: Mask
) -> tuple[Float[Tensor, "counted ours"], Float[Tensor, "counted theirs"]]:
    """Both flattened, in one dtype of at least fp32, without the samples that do not count.

    Raises:
        RecipeError: different numbers of samples, or a mask of another length.
    """
    if len(student) != len(teacher) or (mask is not None and mask.shape != student.shape[:1]):
        others = f", the mask {list(mask.shape)}" if mask is not None else ""
        raise RecipeError(
            f"relations are compared between the same samples: the student gave {len(student)}, the teacher {len(teacher)}{others}."
        )
    both = [widened(x).flatten(1) if x.dim() > 1 else widened(x).unsqueeze(1) for x in (student, teacher)]
    if both[0].dtype != both[1].dtype:
        both = [x.double() for x in both]
    ours, theirs = both if mask is None else (x[mask.bool()] for x in both)
    return ours, theirs


def _inner(x: Float[Tensor, "*any n width"]) -> Float[Tensor, "*any n n"]:
    """All inner products, in the precision of `x`: autocast would take them in half."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.mT


def _distances(x: Float[Tensor, "n width"]) -> Float[Tensor, "n n"]:
    """All distances, divided by the mean of the positive ones; by differences, which do not cancel far from the origin."""
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return d / torch.where((mean := d.sum() / (d > 0).sum().clamp(min=1)) > 0, mean, 1.0)


def _cosines(x: Float[Tensor, "n width"]) -> Float[Tensor, "n n n"]:
    """[i, j, k]: the cosine of the angle at i between j and k."""
    return _inner(unit(x.unsqueeze(0) - x.unsqueeze(1)))


def _neighbourhood(x: Float[Tensor, "n width"]) -> Float[Tensor, "n n"]:
    kernel = (1 + _inner(unit(x))) / 2
    return kernel / kernel.sum(1, keepdim=True)
