"""A head and a comparison in one pass over chunks of tokens, with the gradient written on the way: what fused losses share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, finished
from limbeck.signals import Projection

__all__: list[str] = []  # no loss: these are its inner part

BUDGET = 96 * 2**20
"""Bytes for one chunk where nothing else is said.

One core, fp32, 1024 tokens of 32000 classes, widths 256 and 512; processor time over that of the whole matrix (least of six):
    budget    32 MB   48 MB   64 MB   96 MB   128 MB   256 MB
    kl         0.67    0.68    0.64    0.63     0.62     0.65
Fewer tokens at a time make the products slow, each of which reads the whole head; more only take memory.
"""

Values = Float[Tensor, "..."]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Options(TypedDict, total=False):
    """What every fused loss takes besides its two sides and its own options."""

    temperature: float
    scale: bool
    mask: Bool[Tensor, "..."] | None
    weight: Float[Tensor, "..."] | None
    target: Int64[Tensor, "..."] | None
    label_weight: float
    ignore_index: int
    classes: int | None
    budget: int | None


def checked(options: Options, tokens: torch.Size) -> None:
    """Refuse a temperature that is none, and labels that are not those of these tokens.

    Raises:
        RecipeError: one of them.
        TypeError: an option that no fused loss has.
    """
    for name in options.keys() - Options.__annotations__.keys():
        raise TypeError(
            f"unexpected option '{name}' of a loss of projections; known are {', '.join(Options.__annotations__)}."
        )
    temperature, target = options.get("temperature", 1.0), options.get("target")
    if not temperature > 0:
        raise RecipeError(f"temperature {temperature}: needed is a number above 0; 1 leaves the logits as they are.")
    if target is not None and target.shape != tokens:
        raise RecipeError(f"labels have shape {list(target.shape)}; needed is one for every token, {list(tokens)}.")


def counting(options: Options, tokens: torch.Size) -> Bool[Tensor, "..."] | None:
    """Which tokens the mask counts; None: all."""
    mask = options.get("mask")
    return None if mask is None else aligned(mask.bool(), tokens, "mask").expand(tokens)


def product_dtype(side: Projection) -> torch.dtype:
    """The dtype that a linear layer would multiply in here."""
    dtype, device = torch.promote_types(side.hidden.dtype, side.weight.dtype), side.hidden.device.type
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return dtype


def shared_classes(*sizes: int, classes: int | None = None) -> int:
    """How many classes heads of these lengths have in common.

    Raises:
        RecipeError: they differ by more than padding, or one has fewer than `classes`.
    """
    small, large = min(sizes), max(sizes)
    if classes is not None:
        if not 0 < classes <= small:
            raise RecipeError(
                f"classes={classes}: needed is a number from 1 to the length of the shorter head, {small}."
            )
        return classes
    padding = small == large or (
        large - small <= small // 20 and any(-(-small // n) * n == large for n in (64, 128, 256, 512, 1024))
    )
    if not padding:
        raise RecipeError(
            f"the student's head has {sizes[0]} classes, the teacher's {sizes[-1]}, and the longer is not the shorter one "
            "rounded up. If both use the same tokenizer, say how many tokens it has with classes=...; if not, use a "
            "method that compares across tokenizers."
        )
    return small


@dataclass(frozen=True)
class Side:
    """One head: what turns rows of hidden states into logits in fp32 (fp64 for fp64)."""

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, "classes"] | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, projection: Projection, classes: int) -> Side:
        """The first `classes` rows of a projection's head, as they will be multiplied; a constant for autograd."""
        dtype = product_dtype(projection)
        bias = None if projection.bias is None else projection.bias.detach()[:classes].to(dtype)
        weight = projection.weight.detach()[:classes].to(dtype)
        return cls(weight, bias, projection.scale, projection.softcap)

    @property
    def wide(self) -> torch.dtype:
        """What is computed in after the product."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All that is constant in one comparison. Tokens are rows here: hidden states are [tokens, width].

    `student` is a constant for autograd. `rows` are the numbers of the tokens that count (None: all), `chunk` says how many
    of them are looked at at a time, `slope` whether a gradient will be asked for. Subclasses say what is compared.
    """

    student: Side
    rows: Int64[Tensor, "counted"] | None
    weight: Float[Tensor, "tokens"] | None
    target: Int64[Tensor, "tokens"] | None
    ignore_index: int
    label_weight: float
    temperature: float
    scale: bool
    chunk: int
    slope: bool

    @classmethod
    def values(cls, student: Projection, size: int, options: Options, *, buffers: int, **own: Any) -> Values:
        """The values of all tokens, with gradients into the student's hidden states and head.

        Args:
            size: the first so many classes exist.
            buffers: how many times the logits of a chunk are held, for which there is `budget`.
            own: the subclass's own fields.
        """
        tokens, head = student.hidden.shape[:-1], Side.of(student, size)
        counted, weight, target = counting(options, tokens), options.get("weight"), options.get("target")
        outside = weight is not None and weight.requires_grad  # a weight that is learnt gets its gradient from autograd
        within = None
        if weight is not None and not outside:
            within = aligned(weight, tokens, "weight").to(head.wide).expand(tokens).flatten()
        budget = options.get("budget")
        most = max(1, (BUDGET if budget is None else budget) // (buffers * size * head.wide.itemsize))
        chunks = max(1, -(-tokens.numel() // most))
        comparison = cls(
            student=head,
            rows=None if counted is None else counted.flatten().nonzero().squeeze(-1),
            weight=within,
            target=None if target is None else target.flatten(),
            ignore_index=options.get("ignore_index", -100),
            label_weight=options.get("label_weight", 1.0),
            temperature=options.get("temperature", 1.0),
            scale=options.get("scale", True),
            chunk=max(1, -(-tokens.numel() // chunks)),  # of equal size, so that none is a small rest
            slope=torch.is_grad_enabled(),
            **own,
        )
        values = Fused.apply(comparison, student.hidden.flatten(0, -2), student.weight, student.bias).view(tokens)
        return finished(values, counted, weight) if outside else values

    @property
    def sides(self) -> int:
        """How many products with a head there are."""
        return 1

    def compare(
        self, hidden: Tensor, here: Any, upstream: Tensor | None, rooms: Tensor, slope: bool
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens classes"] | None]:
        """Values of one chunk, and (if `slope`) the gradient of their sum, or of that times `upstream`, in the product.

        Args:
            hidden: the student's, of the tokens `here`.
            upstream: of all tokens.
            rooms: one for the product of each side, to be written into.
        """
        raise NotImplementedError

    def solve(
        self, hidden: Tensor, wanted: tuple[bool, ...], shapes: tuple[Any, Any], upstream: Tensor | None = None
    ) -> tuple[Float[Tensor, "tokens"], Gradients]:
        """Values, and the gradients `wanted` (hidden, weight, bias) of their sum, or of their sum times `upstream`.

        Gradients of the head are summed in fp32 at least and span all of its rows, also those that are ignored.
        """
        exact, classes, (weight_shape, bias_shape) = self.student.wide, len(self.student.weight), shapes
        values = hidden.new_zeros(len(hidden), dtype=exact)
        # fp16 has no room for the small entries of a gradient that no loss scaling has touched yet
        product = _roomy(self.student.weight.dtype)
        into_hidden = hidden.new_zeros(hidden.shape, dtype=_roomy(hidden.dtype)) if wanted[0] else None
        into_weight = hidden.new_zeros(weight_shape, dtype=exact) if wanted[1] else None
        into_bias = hidden.new_zeros(bias_shape, dtype=exact) if wanted[2] else None
        head = self.student.weight.to(product)
        # pages that are used again need not be mapped again, which on a CPU costs as much as a pass over them
        rooms = hidden.new_empty(self.sides, min(self.chunk, len(hidden)), classes, dtype=exact)
        with torch.autocast(hidden.device.type, enabled=False):
            for here in self._chunks(len(hidden)):
                own = hidden[here]
                values[here], gradient = self.compare(own, here, upstream, rooms, any(wanted))
                if gradient is None or not any(wanted):
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


class Fused(torch.autograd.Function):
    """Values per token, whose gradient was written while they were found, for the case that all count alike afterwards.

    That is so for a sum, a mean, a mean over a mask: there backward multiplies by one number. Any other use of the values
    (and a second backward through the same graph) makes backward go through the chunks again: twice the time, the same
    memory, the right gradient.
    """

    @staticmethod
    def forward(ctx: Any, problem: Comparison, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
        problem: Comparison = ctx.problem
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
