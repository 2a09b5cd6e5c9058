"""The two sides of a contrast with one's own past: who asks learns and has one layer more, who answers follows it (MoCo v3)."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.losses.contrastive import info_nce

Vectors = Float[Tensor, "batch width"]


class Sides(nn.Module):
    """pred(q(p)) for who asks, k(p) for who answers; k begins as q and follows it. Layer norms, where MoCo v3 has batch norms.

    So a vector does not depend on the others of its batch, nor on how that is cut.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.query, self.predictor = _mlp(features, width), _mlp(width, width)
        self.key = copy.deepcopy(self.query)

    def asks(self, p: Float[Tensor, "batch features"]) -> Vectors:
        """What the network that learns makes of its features."""
        return self.predictor(self.query(p.to(next(self.query.parameters()).dtype)))

    @torch.no_grad()
    def answers(self, p: Float[Tensor, "batch features"]) -> Vectors:
        """What its past self makes of those of another view, without a graph."""
        return self.key(p.to(next(self.key.parameters()).dtype))

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """k <- decay k + (1 - decay) q."""
        for theirs, ours in zip(self.key.parameters(), self.query.parameters()):
            theirs.lerp_(ours, 1 - decay)

    def learns(self) -> list[nn.Module | nn.Parameter]:
        """What is trained."""
        return [self.query, self.predictor]


def contrast(
    temperature: float = 0.2, rescaled: bool = False, **sides: Float[Tensor, "batch width"]
) -> Float[Tensor, "batch"]:
    """The sum over views n of -log softmax_j(cos(ask_n_i, answer_n_j) / temperature) at j = i; `rescaled`: times 2 temperature.

    `sides`: `ask0`, `answer0`, and `ask1`, `answer1` where both views are asked about. Of batch scope.

    Source: Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers", algorithm 1.
    """
    views = range(len(sides) // 2)
    found = torch.stack([info_nce(sides[f"ask{n}"], sides[f"answer{n}"], temperature=temperature) for n in views])
    return found.sum(0) * (2 * temperature if rescaled else 1)


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width))
