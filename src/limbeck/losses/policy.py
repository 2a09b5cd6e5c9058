"""What policy gradients over written tokens are made of: returns out of rewards, and the clipped surrogate.

Rows of tokens [batch, tokens] with a `mask` of those that count, one run per row. Nothing here is a loss between a
student and a teacher, so a recipe cannot name it.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__: list[str] = []

Values = Float[Tensor, "batch tokens"]
Mask = Bool[Tensor, "batch tokens"]


def discounted(rewards: Values, mask: Mask, discount: float) -> Values:
    """G_t = sum_{k >= t} discount^(k - t) r_k over the tokens that count, 0 elsewhere; discount 0 is r_t itself, 1 the plain sum."""
    rewards = torch.where(mask, rewards, 0)
    if discount == 0:
        return rewards
    found, later = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        later = found[:, t] = rewards[:, t] + discount * later
    return torch.where(mask, found, 0)


def remaining(mask: Mask) -> Values:
    """How many tokens that count there are from each position on, in fp32."""
    return mask.flip(1).cumsum(1).flip(1).float()


def clipped_surrogate(log_ratio: Values, advantage: Values, clip: float) -> Values:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)), rho = exp(log_ratio): no gradient where rho left that range to A's gain.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", equation 7.
    """
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))
