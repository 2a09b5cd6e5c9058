"""Relations between the tokens of a text: how much each token attends to each other, and how far two networks differ in it.

Queries, keys and values are [batch, tokens, width], the width cut into `heads` equal parts; two networks may have other
widths, for only what is between tokens is compared. `mask` (bool, [batch, tokens]): True counts. A token that does not
count is nobody's neighbour and has no gradient, whatever it holds. Computed in fp32 (fp64 for fp64), under autocast too;
gradients flow into **both** arguments.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.divergences import kl
from limbeck.losses.masking import finished, keep, widened

__all__ = ["relation_kl"]

Tokens = Float[Tensor, "batch tokens width"]
Scores = Float[Tensor, "batch heads tokens tokens"]
Mask = Bool[Tensor, "batch tokens"] | None


def relation_scores(a: Tokens, b: Tokens, heads: int, *, mask: Mask = None) -> Scores:
    """a_h b_h^T / sqrt(width of a head) for each head: attention before the softmax, where `a` are queries and `b` keys.

    Without rotary positions, which are no part of what projections give. Between tokens of which one does not count: 0.

    Raises:
        RecipeError: `heads` does not divide the width, or the two differ in shape.
    """
    if a.dim() != 3 or a.shape != b.shape:
        raise RecipeError(
            f"relations between tokens: the two have shapes {list(a.shape)} and {list(b.shape)}; needed is twice the same, [batch, tokens, width]."
        )
    width = a.shape[-1]
    if heads < 1 or width % heads:
        fits = [n for n in range(1, width + 1) if width % n == 0]
        raise RecipeError(
            f"a width of {width} cannot be cut into {heads} heads; into {', '.join(map(str, fits))} it can."
        )
    left, right = (widened(keep(x, mask, -1)).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (a, b))
    with torch.autocast(a.device.type, enabled=False):
        return left @ right.mT / math.sqrt(width // heads)


def relation_kl(
    student: Scores, teacher: Scores, *, mask: Mask = None, weight: Float[Tensor, "batch"] | None = None
) -> Float[Tensor, "batch"]:
    """KL(softmax(teacher) || softmax(student)) of every token's relation to all others, mean over heads and tokens.

    Arguments are scores (`relation_scores`) of as many heads and tokens. One value per text, 0 for one without tokens;
    never negative, and 0 for equal scores.

    Source: Wang et al. 2020, "MiniLM" (arXiv 2002.10957), section 3; Wang et al. 2021, "MiniLMv2" (arXiv 2012.15828), section 3.
    """
    if mask is None:
        return finished(kl(student, teacher).mean((1, 2)), None, weight)
    counts = mask.bool()
    others = counts[:, None, None, :]
    rows = counts[:, None, :].expand(student.shape[:3])
    q, p = (x.masked_fill(~others, -math.inf) for x in (student, teacher))
    values = kl(q, p, mask=rows).sum((1, 2)) / (counts.sum(1) * student.shape[1]).clamp(min=1)
    return finished(values, counts.any(1), weight)
