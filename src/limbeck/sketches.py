"""What is known of a distribution over many classes when it is not kept whole: some classes, and the mass of the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.errors import RecipeError


@dataclass(frozen=True)
class Sketch:
    """A distribution over `classes` classes, of which some are known: stored or asked-for logits of a language model.

    Of the most probable classes it holds the true log-probabilities, and the mass of all others in one number, so that
    all of it sums to 1: a truncated distribution is never taken for a whole one. What is in the rest is not known;
    `expand` and everything here that needs a guess spread it evenly over the classes that are not known.

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

    @classmethod
    def top(cls, logits: Float[Tensor, "... classes"], k: int) -> Sketch:
        """The k most probable classes (all, if there are fewer) and the exact mass of the others.

        The mass is summed over the others and not taken as 1 - sum, which would cancel.
        """
        log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        log_probs, ids = log_p.topk(min(k, log_p.shape[-1]), dim=-1)
        log_tail = log_p.scatter(-1, ids, -math.inf).logsumexp(-1)
        return cls(ids, log_probs, log_tail, log_p.shape[-1])

    @classmethod
    def drawn(cls, logits: Float[Tensor, "... classes"], draws: int, start: Float[Tensor, "..."]) -> Sketch:
        """`draws` classes by systematic sampling, each with weight (times it was drawn) / draws.

        The distribution function is asked at (start + i) / draws, i = 0 .. draws - 1, one `start` in [0, 1) per
        distribution. Where it is uniform, class v is drawn `draws` * p_v times on average and never more than one time
        more or less than that, so that weighted sums are unbiased, with a far smaller variance than independent draws
        have for probable classes.

        Source: Anshumann et al. 2025, "Sparse logit sampling", for the use of samples (there independent ones);
        Madow 1949 for systematic sampling.
        """
        log_p = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        upto = log_p.double().exp().cumsum(-1)
        points = torch.ceil(upto / upto[..., -1:] * draws - start.double().unsqueeze(-1))
        counts = torch.diff(points, prepend=torch.zeros_like(points[..., :1]), dim=-1)
        k = min(draws, log_p.shape[-1])
        most, ids = counts.topk(k, dim=-1)
        used = max(int((most > 0).sum(-1).max()), 1) if most.numel() else 1
        weights = (most[..., :used] / draws).to(log_p.dtype).log()
        return cls(ids[..., :used], weights, torch.full_like(weights[..., 0], -math.inf), log_p.shape[-1], sampled=True)

    @property
    def shape(self) -> torch.Size:
        """The shape that the whole distribution would have."""
        return torch.Size([*self.ids.shape[:-1], self.classes])

    @property
    def known(self) -> Bool[Tensor, "... k"]:
        """Which entries stand for a class."""
        return ~torch.isneginf(self.log_probs)

    @property
    def log_share(self) -> Float[Tensor, "..."]:
        """The log-probability of one class that is not known, where the rest is spread evenly; -inf where there is none."""
        others = (self.classes - self.known.sum(-1)).to(self.log_tail.dtype)
        return torch.where(others > 0, self.log_tail - others.clamp(min=1).log(), -math.inf)

    def holds(self, classes: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Whether one class for each distribution is among those that are known."""
        return ((self.ids == classes.unsqueeze(-1)) & self.known).any(-1)

    def total(self) -> Float[Tensor, "..."]:
        """The mass of all known classes and the rest: 1, up to rounding, or it is not a distribution."""
        return self.log_probs.exp().sum(-1) + self.log_tail.exp()

    def checked(self, tolerance: float = 1e-3) -> Sketch:
        """This sketch, if every distribution in it (but those that know nothing at all) has mass 1.

        Raises:
            RecipeError: log-probabilities that were cut off or never normalised, or ids that are no classes.
        """
        total, something = self.total(), self.known.any(-1) | ~torch.isneginf(self.log_tail)
        wrong = something & ~((total - 1).abs() <= tolerance)
        if wrong.any():
            raise RecipeError(
                f"a stored distribution has mass {float(total[wrong][0]):.4g} and not 1: were its log-probabilities cut off "
                "without the mass of the rest, or are they logits? Give the log-probabilities under the whole softmax."
            )
        outside = self.known & ((self.ids < 0) | (self.ids >= self.classes))
        if outside.any():
            raise RecipeError(f"a stored class has the number {int(self.ids[outside][0])}; there are {self.classes}.")
        return self

    def expand(self) -> Float[Tensor, "... classes"]:
        """Log-probabilities of all classes, the rest spread evenly; for looking and for small vocabularies.

        Of samples: their weights, and -inf for every class that was not drawn.
        """
        whole = self.log_share.unsqueeze(-1).repeat(*[1] * self.log_share.dim(), self.classes + 1)
        ids = self.ids.long().where(self.known, self.classes)  # entries that stand for nothing go beside the classes
        return whole.scatter(-1, ids, self.log_probs)[..., :-1]

    def to(self, *args: Any, **kwargs: Any) -> Sketch:
        """The same on another device."""
        return replace(
            self,
            ids=self.ids.to(*args, **kwargs),
            log_probs=self.log_probs.to(*args, **kwargs),
            log_tail=self.log_tail.to(*args, **kwargs),
        )

    def __getitem__(self, index: Any) -> Sketch:
        """Some of its distributions: the index goes over the dimensions before the classes."""
        return replace(self, ids=self.ids[index], log_probs=self.log_probs[index], log_tail=self.log_tail[index])
