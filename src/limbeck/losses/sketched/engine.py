"""A head against a sketch in one pass over chunks of tokens, with the gradient written on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from limbeck.losses.sketched.buckets import Buckets
from limbeck.signals import Projection

__all__: list[str] = []  # no loss: these are its inner part

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SketchProblem:
    """All that is constant in one comparison; tokens are rows: hidden states are [tokens, width].

    The loss is a function of the k + 1 bucket logits b of a token. Its derivative in the logit of a known class is that in
    its b; in every other logit that in the last b, times the softmax over the rest. So autograd is asked about
    [tokens, k + 1] alone, and logits are passed over a few times.

    `rows` are the numbers of the tokens that count (None: all); `slope` says whether a gradient will be asked for. The
    `head` is the student's, a constant for autograd, in the dtype of the product and with no padding.
    """

    loss: Loss
    head: Projection
    buckets: Buckets
    spread: bool
    rows: Int64[Tensor, "counted"] | None
    weight: Float[Tensor, "tokens"] | None
    target: Int64[Tensor, "tokens"] | None
    ignore_index: int
    label_weight: float
    temperature: float
    scale: bool
    chunk: int
    slope: bool

    def solve(
        self, hidden: Tensor, wanted: tuple[bool, ...], shapes: tuple[Any, Any], upstream: Tensor | None = None
    ) -> tuple[Float[Tensor, "tokens"], Gradients]:
        """Values, and the gradients `wanted` (hidden, weight, bias) of their sum, or of their sum times `upstream`.

        Gradients of the head are summed in fp32 at least and span all of its rows, also those that are ignored.
        """
        head = self.head.weight
        exact = torch.float64 if head.dtype == torch.float64 else torch.float32
        # fp16 has no room for the small entries of a gradient that no loss scaling has touched yet
        product = torch.float32 if head.dtype == torch.float16 else head.dtype
        values = hidden.new_zeros(len(hidden), dtype=exact)
        into_hidden = torch.zeros_like(hidden, dtype=exact) if wanted[0] else None
        into_weight = hidden.new_zeros(shapes[0], dtype=exact) if wanted[1] else None
        into_bias = hidden.new_zeros(shapes[1], dtype=exact) if wanted[2] else None
        # pages that are used again need not be mapped again, which on a CPU costs as much as a pass over them
        room = hidden.new_empty(min(self.chunk, len(hidden)), len(head), dtype=head.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for here in self._chunks(len(hidden)):
                own = hidden[here]
                factor = None if upstream is None else upstream[here]
                values[here], gradient = self._compare(self._product(own, room), here, any(wanted), factor)
                if gradient is None:
                    continue
                narrow = gradient.to(product)
                if into_hidden is not None:
                    into_hidden[here] = (narrow @ head.to(product)).to(exact)
                if into_weight is not None:
                    part = into_weight[: len(head)]
                    if product == exact:
                        part.addmm_(narrow.T, own.to(exact))
                    else:
                        part += narrow.T @ own.to(product)
                if into_bias is not None:
                    into_bias[: len(head)] += gradient.sum(0)
        return values, (into_hidden, into_weight, into_bias)

    def _chunks(self, tokens: int) -> Iterator[Any]:
        for start in range(0, tokens if self.rows is None else len(self.rows), self.chunk):
            end = start + self.chunk
            yield slice(start, end) if self.rows is None else self.rows[start:end]

    def _product(self, hidden: Tensor, room: Tensor) -> Float[Tensor, "tokens classes"]:
        """Logits in fp32 (fp64), to be overwritten, scaled and capped."""
        z = torch.mm(hidden.to(room.dtype), self.head.weight.T, out=room[: len(hidden)])
        z = z if z.dtype == torch.float64 else z.float()
        if self.head.bias is not None:
            z.add_(self.head.bias)
        if self.head.scale != 1:
            z.mul_(self.head.scale)
        cap = self.head.softcap
        return z if cap is None else z.div_(cap).tanh_().mul_(cap)

    def _compare(
        self, z: Tensor, here: Any, slope: bool, upstream: Tensor | None
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens classes"] | None]:
        """Values of one chunk, and the gradient of their sum (times `upstream`) in the product."""
        teacher, cap = self.buckets[here], self.head.softcap
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
        if self.head.scale != 1:
            gradient.mul_(self.head.scale)
        for outer in (None if self.weight is None else self.weight[here], upstream):
            if outer is not None:
                gradient.mul_(outer[:, None])
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
