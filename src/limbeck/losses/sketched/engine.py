"""A head against a sketch in one pass over chunks of tokens, with the gradient written on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.linear.chunks import Comparison
from limbeck.losses.sketched.buckets import Buckets

__all__: list[str] = []  # no loss: these are its inner part

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class SketchProblem(Comparison):
    """A loss that is a function of the k + 1 bucket logits b of a token.

    Its derivative in the logit of a known class is that in its b; in every other logit that in the last b, times the
    softmax over the rest. So autograd is asked about [tokens, k + 1] alone, and logits are passed over a few times.
    """

    loss: Loss
    buckets: Buckets
    spread: bool

    def compare(
        self, hidden: Tensor, here: Any, upstream: Tensor | None, rooms: Tensor, slope: bool
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens classes"] | None]:
        """See the class."""
        z = self.student.shaped(self.student.product(hidden, rooms[0]))
        teacher, cap = self.buckets[here], self.student.softcap
        capped = z.clone() if cap is not None and slope else None
        label, labels = None, None
        if self.target is not None:
            counted = self.target[here] != self.ignore_index
            label = _Label(
                self.target[here].where(counted, 0)[:, None], counted.to(z.dtype)[:, None] * self.label_weight
            )
            if self.temperature != 1:  # the labels have a softmax of their own
                labels, own = label.alone(z, slope)
        if self.temperature != 1:
            z.div_(self.temperature)
        logit = z.gather(-1, label.classes) if label is not None else None
        sums = z.sum(-1) if self.spread else None
        chosen, places = teacher.chosen(z), teacher.places
        z.index_put_((places.rows, places.classes), z.new_full((), -torch.inf))
        largest, mass = _exponentials(z)
        b = torch.cat([chosen, largest + mass.log()], -1)
        found, into = self._of_buckets(b, teacher, slope)
        evenly = None
        if sums is not None:
            some, count = teacher.others > 0, teacher.others.clamp(min=1)
            evenly = teacher.log_p[:, -1].exp() / count * some
            rest = sums - torch.where(teacher.known, chosen, 0).sum(-1)
            found = found + torch.where(some, b[:, -1], 0) * evenly * count - evenly * (count * count.log() + rest)
        values = found.clamp(min=0) * (self.temperature**2 if self.scale else 1)  # rounding may leave -1e-9
        log_sum = b.logsumexp(-1, keepdim=True)
        if label is not None and logit is not None:
            values = values + (((log_sum - logit) * label.counts).squeeze(-1) if labels is None else labels)
        if self.weight is not None:
            values = values * self.weight[here]
        if into is None:
            return values, None
        factor = self.temperature if self.scale else 1 / self.temperature
        into = into * factor
        if evenly is not None:
            evenly = evenly * factor
            into[:, -1] += evenly * teacher.others
        if label is not None and labels is None:
            into = into + label.counts * (b - log_sum).exp()
        gradient = z.mul_(into[:, -1:] / mass.where(mass > 0, 1))
        if evenly is not None:
            gradient.sub_(evenly[:, None])
        gradient.index_put_((places.rows, places.classes), into[places.rows, places.entries])
        if label is not None:
            if labels is None:
                gradient.scatter_add_(-1, label.classes, -label.counts)
            else:
                gradient.add_(own)
        if capped is not None and cap is not None:
            gradient.mul_(capped.div_(cap).square_().neg_().add_(1))
        if self.student.scale != 1:
            gradient.mul_(self.student.scale)
        for outer in (self.weight, upstream):
            if outer is not None:
                gradient.mul_(outer[here, None])
        return values, gradient

    def _of_buckets(self, b: Tensor, teacher: Buckets, slope: bool) -> tuple[Tensor, Tensor | None]:
        """The loss of bucket logits, and its derivative in them."""
        if not slope:
            return of_buckets(self.loss, b, teacher), None
        with torch.enable_grad():
            b = b.detach().requires_grad_()
            found = of_buckets(self.loss, b, teacher)
            (into,) = torch.autograd.grad(found.sum(), b)
        return found.detach(), into


def of_buckets(loss: Loss, b: Float[Tensor, "tokens buckets"], teacher: Buckets) -> Float[Tensor, "tokens"]:
    """`loss(student's bucket logits, teacher's log-probabilities)`; 0 for a token of which nothing is stored."""
    nothing = torch.isneginf(teacher.log_p).all(-1, keepdim=True)
    values = loss(b.masked_fill(nothing, 0.0), teacher.log_p.masked_fill(nothing, 0.0))
    return torch.where(nothing.squeeze(-1), 0, values)


@dataclass(frozen=True)
class _Label:
    """Labels, and how much each counts."""

    classes: Int64[Tensor, "tokens 1"]
    counts: Float[Tensor, "tokens 1"]

    def alone(self, z: Tensor, slope: bool) -> tuple[Tensor, Tensor]:
        """counts * -log softmax(z)_y, and its gradient in z, for logits that are needed again."""
        log_q = F.log_softmax(z, -1)
        values = -(log_q.gather(-1, self.classes) * self.counts).squeeze(-1)
        if not slope:
            return values, log_q
        return values, log_q.exp_().mul_(self.counts).scatter_add_(-1, self.classes, -self.counts)


_IN_CACHE = 2**20  # bytes of logits that stay in a core's cache from one pass over them to the next


def _exponentials(z: Float[Tensor, "tokens classes"]) -> tuple[Float[Tensor, "tokens 1"], Float[Tensor, "tokens 1"]]:
    """In place exp(z - largest) of every row; the largest, and the sum of the exponentials (0 where all are -inf)."""
    rows = len(z) if z.is_cuda else max(1, _IN_CACHE // max(1, z[:1].numel() * z.element_size()))
    found = []
    for block in z.split(rows):
        largest = block.amax(-1, keepdim=True)
        largest.masked_fill_(torch.isneginf(largest), 0)
        found.append((largest, block.sub_(largest).exp_().sum(-1, keepdim=True)))
    return torch.cat([each[0] for each in found]), torch.cat([each[1] for each in found])
