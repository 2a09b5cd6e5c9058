"""The fused pass of `limbeck.losses.linear`, with a sketch where the teacher's head would be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.linear.engine import Problem
from limbeck.losses.sketched.buckets import Buckets

__all__: list[str] = []  # no loss: these are its inner part


@dataclass(frozen=True)
class SketchProblem(Problem):
    """A comparison with k + 1 buckets per token: the form sees those, the logits only a log-sum-exp and its derivative.

    Where the loss depends on the logits through the bucket logits b alone, its derivative is that in b for a known class,
    and that in the last b, spread by the softmax over the rest, for every other one.
    """

    buckets: Buckets | None = None
    spread: bool = False
    entropy: bool = True

    def _compare(self, hidden: Tensor, here: Any, slope: bool, rooms: list[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Values of one chunk and their gradient in the student's product, before the weights of tokens."""
        assert self.buckets is not None
        assert self.form is not None
        z, teacher = self.student.logits(hidden, rooms[0]), self.buckets[here]
        capped = None if self.student.softcap is None or not slope else z.clone()
        values, more = z.new_zeros(len(z)), None
        if self.target is not None and self.temperature != 1:
            values, more = self._labels(z, self.target[here], slope)
        if self.temperature != 1:
            z.div_(self.temperature)
        label = None if self.target is None or self.temperature != 1 else _Label(self, z, self.target[here])
        sums = z.sum(-1) if self.spread else None
        chosen, places = teacher.chosen(z), teacher.places
        z.index_put_((places.rows, places.classes), z.new_full((), -math.inf))
        largest, mass = _exponentials(z)
        b = torch.cat([chosen, largest + mass.log()], -1)
        log_sum = b.logsumexp(-1, keepdim=True)
        least = math.log(torch.finfo(z.dtype).tiny)  # a form wants finite numbers; this one stands for nothing
        log_q, log_p = (b - log_sum).clamp_(min=least), teacher.log_p.clamp(min=least)
        # the forms overwrite what they are given
        found, into = self.form(log_q.clone(), log_p.clone(), torch.empty_like(log_p))
        if not self.entropy:
            found = found - (log_p.exp() * log_p).sum(-1)
        rest_mass = log_p[:, -1].exp() if self.spread else None
        if sums is not None and rest_mass is not None:
            held = torch.where(teacher.known, b[:, :-1], 0).sum(-1)
            mean = (sums - held) / teacher.others.clamp(min=1)
            gap = b[:, -1] - teacher.others.clamp(min=1).log() - mean
            found = found + torch.where(teacher.others > 0, rest_mass * gap, 0)
        nothing = torch.isneginf(teacher.log_p).all(-1)  # no answer was stored here
        found = found.clamp_(min=0).masked_fill(nothing, 0)  # rounding may leave -1e-9
        values = values + found * (self.temperature**2 if self.scale else 1)
        if label is not None:
            values = values + label.values(log_sum)
        if not slope:
            return values, None
        factor = self.temperature if self.scale else 1 / self.temperature
        into = (into * factor).masked_fill_(nothing[:, None], 0)
        evenly = None
        if rest_mass is not None:
            evenly = (rest_mass * factor)[:, None]
            into[:, -1:] += evenly
        if label is not None:
            into += label.counts * (b - log_sum).exp()
        gradient = z.mul_(into[:, -1:] / mass.where(mass > 0, 1))
        if evenly is not None:
            gradient.sub_(evenly / teacher.others.clamp(min=1)[:, None])
        gradient.index_put_((places.rows, places.classes), into[places.rows, places.entries])
        if label is not None:
            gradient.scatter_add_(-1, label.chosen, -label.counts)
        if more is not None:
            gradient.add_(more)
        if capped is not None and self.student.softcap is not None:
            gradient.mul_(capped.div_(self.student.softcap).square_().neg_().add_(1))
        return values, gradient if self.student.scale == 1 else gradient.mul_(self.student.scale)


class _Label:
    """The cross-entropy on labels, whose log-sum-exp the buckets have found already."""

    def __init__(self, problem: Problem, z: Tensor, target: Tensor):
        counted = target != problem.ignore_index
        self.counts = counted.to(z.dtype)[:, None] * problem.label_weight
        self.chosen = target.where(counted, 0)[:, None]
        self.logit = z.gather(-1, self.chosen)

    def values(self, log_sum: Tensor) -> Tensor:
        """label_weight * -log softmax(z)_y, 0 where the label is ignored."""
        return ((log_sum - self.logit) * self.counts).squeeze(-1)


_IN_CACHE = 2**20  # bytes of logits that stay in a core's cache from one pass over them to the next


def _exponentials(z: Float[Tensor, "tokens classes"]) -> tuple[Float[Tensor, "tokens 1"], Float[Tensor, "tokens 1"]]:
    """In place exp(z - largest) of every row; the largest, and the sum of the exponentials (0 where all are -inf)."""
    rows = len(z) if z.is_cuda else max(1, _IN_CACHE // max(1, z[:1].numel() * z.element_size()))
    found = []
    for block in z.split(rows):
        largest = block.amax(-1, keepdim=True)
        largest.masked_fill_(torch.isneginf(largest), 0)
        found.append((largest, block.sub_(largest).exp_().sum(-1, keepdim=True)))
    if not found:
        return z.new_zeros(0, 1), z.new_zeros(0, 1)
    return torch.cat([each[0] for each in found]), torch.cat([each[1] for each in found])
