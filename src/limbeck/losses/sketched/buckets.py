"""Two distributions over the same k + 1 buckets: the classes that a sketch knows, one each, and all others together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.sketches import Sketch

__all__: list[str] = []  # no loss: these are its inner part

TAILS = ("bucket", "spread", "drop")


@dataclass(frozen=True)
class Buckets:
    """A teacher's sketch at a temperature, ready to be compared: rows are tokens.

    Attributes:
        ids: classes of the first k buckets; where `known` is False an entry stands for nothing.
        log_p: of the k buckets and, last, of all other classes together.
        others: how many those are.
    """

    ids: Int64[Tensor, "tokens k"]
    known: Bool[Tensor, "tokens k"]
    log_p: Float[Tensor, "tokens buckets"]
    others: Float[Tensor, "tokens"]

    @classmethod
    def of(cls, sketch: Sketch, size: int, temperature: float, tail: str, dtype: torch.dtype) -> Buckets:
        """The teacher's side over the first `size` classes.

        At a temperature T the classes of the rest are taken as equal: its mass becomes n (tail / n)^(1 / T), n their
        number, before everything is normalised; that is exact where they are. A known class beyond `size` (padding of
        a longer head) joins the rest. With `tail="drop"` the known classes alone are normalised, and the rest has none.
        """
        ids = sketch.ids.detach().flatten(0, -2).long()
        log_p = sketch.log_probs.detach().flatten(0, -2).to(dtype)
        log_tail = sketch.log_tail.detach().flatten().to(dtype)
        beyond = ids >= size
        if sketch.classes > size:
            log_tail = torch.logaddexp(log_tail, log_p.masked_fill(~beyond, -math.inf).logsumexp(-1))
            log_p = log_p.masked_fill(beyond, -math.inf)
        known = ~torch.isneginf(log_p)
        others = (size - known.sum(-1)).to(dtype)
        if temperature != 1:
            if sketch.sampled:
                raise RecipeError(
                    f"temperature={temperature:g} with sampled logits: their weights estimate the teacher's distribution at "
                    "temperature 1 and no other. Use temperature=1, or store the most probable classes (cache.top_k)."
                )
            log_p = log_p / temperature
            share = (log_tail - others.clamp(min=1).log()) / temperature
            log_tail = torch.where(others > 0, share + others.clamp(min=1).log(), -math.inf)
        if tail == "drop":
            log_tail = torch.full_like(log_tail, -math.inf)
        both = torch.cat([log_p, log_tail[:, None]], -1)
        whole = both.logsumexp(-1, keepdim=True)
        both = both - torch.where(torch.isneginf(whole), 0, whole)  # a token of which nothing is known has no mass
        if tail != "drop" and not sketch.sampled:
            both[:, -1] = cls._floored(both[:, -1], (others > 0) & known.any(-1))
        return cls(ids.where(known, 0), known, both, others)

    @staticmethod
    def _floored(log_rest: Float[Tensor, "tokens"], some: Bool[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
        """A rest that has classes and no mass gets the smallest mass that there is.

        So a student that gives it something pays a large price in the reverse divergences, and not an infinite one: what
        a store rounded to nothing is hardly ever nothing.
        """
        least = math.log(torch.finfo(log_rest.dtype).tiny)
        return torch.where(some, log_rest.clamp(min=least), log_rest)

    def __getitem__(self, here: Any) -> Buckets:
        """Those of some tokens."""
        return Buckets(self.ids[here], self.known[here], self.log_p[here], self.others[here])

    def chosen(self, z: Float[Tensor, "tokens classes"]) -> Float[Tensor, "tokens k"]:
        """The student's logits of the known classes."""
        return z.gather(-1, self.ids).masked_fill(~self.known, -math.inf)

    @property
    def places(self) -> Places:
        """The known classes, one after another."""
        rows, entries = self.known.nonzero(as_tuple=True)
        return Places(rows, entries, self.ids[rows, entries])

    def of_student(self, z: Float[Tensor, "tokens classes"]) -> Float[Tensor, "tokens buckets"]:
        """The student's logits of the buckets, by autograd.

        The last is the log-sum-exp of the other classes themselves, so that nothing cancels where the known ones have
        nearly all mass.
        """
        rows, _, classes = self.places
        rest = z.index_put((rows, classes), z.new_full((), -math.inf))
        empty = (self.others == 0)[:, None]  # a log-sum-exp of nothing has nan for a gradient
        last = rest.masked_fill(empty, 0.0).logsumexp(-1, keepdim=True).masked_fill(empty, -math.inf)
        return torch.cat([self.chosen(z), last], -1)


class Places(NamedTuple):
    """Known classes, one after another: the token, its entry in the sketch, the class."""

    rows: Int64[Tensor, "n"]
    entries: Int64[Tensor, "n"]
    classes: Int64[Tensor, "n"]
