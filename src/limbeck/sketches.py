"""What is known of a distribution over many classes when it is not kept whole: some classes, and the mass of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sketch:
    """A distribution over `classes` classes, of which some are known: stored or asked-for logits of a language model.

    Attributes:
        ids: the known classes; entries whose log-probability is -inf stand for nothing (fewer than k are known there).
        log_probs: their log-probabilities at temperature 1, never normalised over the known ones alone. Of a `sampled`
            sketch: log importance weights whose exponentials sum to 1; with them sum_k w_k f(id_k) is an unbiased
            estimate of sum_v p_v f(v).
        log_tail: log of the mass of all classes that are not known; -inf where nothing is left (and for samples).
        classes: how many classes there are in all.
        sampled: whether the classes were drawn, and not the most probable ones.
    """

    ids: Int[Tensor, "... k"]
    log_probs: Float[Tensor, "... k"]
    log_tail: Float[Tensor, "..."]
    classes: int
    sampled: bool = False

    @property
    def shape(self) -> torch.Size:
        """The shape that the whole distribution would have."""
        return torch.Size([*self.ids.shape[:-1], self.classes])
