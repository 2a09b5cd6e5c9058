"""Two heads and a divergence in one pass over chunks of tokens, with the gradient written on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from limbeck.losses.linear import forms
from limbeck.signals import Projection

__all__: list[str] = []  # no loss: these are its inner part

Form = Callable[[Tensor, Tensor], Tensor]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Side:
    """One head: what turns rows of hidden states into logits in fp32 (fp64 for fp64)."""

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, "classes"] | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, projection: Projection, classes: int, dtype: torch.dtype) -> Side:
        """The first `classes` rows of a projection's head, multiplied in `dtype`; a constant for autograd."""
        bias = None if projection.bias is None else projection.bias.detach()[:classes].to(dtype)
        weight = projection.weight.detach()[:classes].to(dtype)
        return cls(weight, bias, projection.scale, projection.softcap)

    def product(self, hidden: Float[Tensor, "tokens width"], room: Tensor) -> Float[Tensor, "tokens classes"]:
        """The first rows of `room`, which hold the product and bias now: logits, once they are `shaped`."""
        hidden, z = hidden.to(self.weight.dtype), room[: len(hidden)]
        if z.dtype != self.weight.dtype:
            return z.copy_(F.linear(hidden, self.weight, self.bias))
        if self.bias is None:
            return torch.mm(hidden, self.weight.T, out=z)
        return torch.addmm(self.bias, hidden, self.weight.T, out=z)

    def shaped(self, z: Float[Tensor, "tokens classes"]) -> Float[Tensor, "tokens classes"]:
        """Scaled and capped, in place."""
        if self.scale != 1:
            z.mul_(self.scale)
        return z if self.softcap is None else z.div_(self.softcap).tanh_().mul_(self.softcap)


@dataclass(frozen=True)
class Problem:
    """All that is constant in one comparison. Tokens are rows here: hidden states are [tokens, width].

    `rows` are the numbers of the tokens that count (None: all); `slope` says whether a gradient will be asked for.
    """

    form: Form | None
    student: Side
    teacher: Side | None
    teacher_hidden: Float[Tensor, "tokens width"] | None
    rows: Int64[Tensor, "counted"] | None
    weight: Float[Tensor, "tokens"] | None
    target: Int64[Tensor, "tokens"] | None
    ignore_index: int
    label_weight: float
    temperature: float
    scale: bool
    chunk: int
    strip: int
    slope: bool

    def solve(
        self, hidden: Tensor, wanted: tuple[bool, ...], shapes: tuple[Any, Any], upstream: Tensor | None = None
    ) -> tuple[Float[Tensor, "tokens"], Gradients]:
        """Values, and the gradients `wanted` (hidden, weight, bias) of their sum, or of their sum times `upstream`.

        Gradients of the head are summed in fp32 at least and span all of its rows, also those that are ignored.
        """
        exact = torch.float64 if self.student.weight.dtype == torch.float64 else torch.float32
        classes, (weight_shape, bias_shape) = len(self.student.weight), shapes
        values = hidden.new_zeros(len(hidden), dtype=exact)
        # fp16 has no room for the small entries of a gradient that no loss scaling has touched yet
        product = _roomy(self.student.weight.dtype)
        into_hidden = hidden.new_zeros(hidden.shape, dtype=_roomy(hidden.dtype)) if wanted[0] else None
        into_weight = hidden.new_zeros(weight_shape, dtype=exact) if wanted[1] else None
        into_bias = hidden.new_zeros(bias_shape, dtype=exact) if wanted[2] else None
        head = self.student.weight.to(product)
        # pages that are used again need not be mapped again, which on a CPU costs as much as a pass over them
        rooms = hidden.new_empty(1 if self.teacher is None else 2, min(self.chunk, len(hidden)), classes, dtype=exact)
        with torch.autocast(hidden.device.type, enabled=False):
            for here in self._chunks(len(hidden)):
                own = hidden[here]
                values[here], gradient = self._compare(own, here, upstream, rooms)
                if not any(wanted):
                    continue
                narrow = gradient.to(product)
                if into_hidden is not None:
                    into_hidden[here] = (narrow @ head).to(into_hidden.dtype)
                if into_weight is not None:
                    if product == exact:
                        into_weight[:classes].addmm_(narrow.T, own.to(exact))
                    else:
                        into_weight[:classes] += narrow.T @ own.to(product)
                if into_bias is not None:
                    into_bias[:classes] += gradient.sum(0)
        return values, (into_hidden, into_weight, into_bias)

    def _chunks(self, tokens: int) -> Iterator[Any]:
        for start in range(0, tokens if self.rows is None else len(self.rows), self.chunk):
            end = start + self.chunk
            yield slice(start, end) if self.rows is None else self.rows[start:end]

    def _compare(self, hidden: Tensor, here: Any, upstream: Tensor | None, rooms: Tensor) -> tuple[Tensor, Tensor]:
        """Values of one chunk, and the gradient of their sum (times `upstream`) in the student's product.

        The products are taken of many tokens, what follows of few, so that a pass finds in a cache what the last one left.
        """
        z = self.student.product(hidden, rooms[0])
        t = None
        if self.teacher is not None and self.teacher_hidden is not None:
            t = self.teacher.product(self.teacher_hidden[here], rooms[1])
        columns = [None if c is None else c[here] for c in (self.target, self.weight, upstream)]
        few = range(0, len(z), self.strip)
        cut = [[None] * len(few) if c is None else c.split(self.strip) for c in (z, t, *columns)]
        return torch.cat([self._few(*pieces) for pieces in zip(*cut)]), z

    def _few(
        self, z: Tensor, t: Tensor | None, target: Tensor | None, weight: Tensor | None, upstream: Tensor | None
    ) -> Tensor:
        """Values of a few tokens from their products; that of the student becomes the gradient."""
        self.student.shaped(z)
        capped = None if self.student.softcap is None else z.clone()
        values, more = z.new_zeros(len(z)), None
        if target is not None:
            counts = (target != self.ignore_index).to(z.dtype) * self.label_weight
            more = z if t is None else z.clone()
            values = forms.labels(more, target.where(target != self.ignore_index, 0)) * counts
            more.mul_(counts[:, None])
        if self.teacher is not None and self.form is not None and t is not None:
            self.teacher.shaped(t)
            if self.temperature != 1:
                z.div_(self.temperature)
                t.div_(self.temperature)
            values = values + self.form(z, t).clamp_(min=0) * (self.temperature**2 if self.scale else 1)
            factor = self.temperature if self.scale else 1 / self.temperature
            if factor != 1:
                z.mul_(factor)
            if more is not None:
                z.add_(more)
        if capped is not None and self.student.softcap is not None:
            z.mul_(capped.div_(self.student.softcap).square_().neg_().add_(1))
        if self.student.scale != 1:
            z.mul_(self.student.scale)
        if weight is not None:
            values = values * weight
            z.mul_(weight[:, None])
        if upstream is not None:
            z.mul_(upstream[:, None])
        return values


class Fused(torch.autograd.Function):
    """Values per token, whose gradient was written while they were found, for the case that all count alike afterwards.

    That is so for a sum, a mean, a mean over a mask: there backward multiplies by one number. Any other use of the values
    (and a second backward through the same graph) makes backward go through the chunks again: twice the time, the same
    memory, the right gradient.
    """

    @staticmethod
    def forward(ctx: Any, problem: Problem, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = (*(w and problem.slope for w in ctx.needs_input_grad[1:]),)
        ctx.problem, ctx.wanted = problem, wanted
        ctx.shapes = weight.shape, None if bias is None else bias.shape
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(hidden, weight)  # the weight only so that a change in place is noticed
        values, ctx.written = problem.solve(hidden, wanted, ctx.shapes)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        hidden, _ = ctx.saved_tensors
        problem: Problem = ctx.problem
        written, ctx.written = ctx.written, None
        counted = upstream if problem.rows is None else upstream[problem.rows]
        if problem.rows is not None:  # a token that does not count gets nothing, also where what comes in is nan
            upstream = torch.zeros_like(upstream).index_copy_(0, problem.rows, counted)
        head = any(ctx.wanted[1:])
        if head and not _alike(counted):
            _, written = problem.solve(hidden, ctx.wanted, ctx.shapes, upstream)
        else:
            if written is None:
                _, written = problem.solve(hidden, ctx.wanted, ctx.shapes)
            for gradient in written if len(counted) else ():
                if gradient is not None:
                    gradient.mul_(counted[0] if head else upstream[:, None])
        cast = [None if g is None else g.to(d) for g, d in zip(written, ctx.dtypes)]
        return None, cast[0], cast[1], cast[2]


def _roomy(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.float16 else dtype


def _alike(x: Tensor) -> bool:
    return len(x) == 0 or bool((x == x[0]).all())
