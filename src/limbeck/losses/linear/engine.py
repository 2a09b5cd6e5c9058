"""Two heads and a divergence in one pass over chunks of tokens, with the gradient written on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.losses.linear import forms
from limbeck.losses.linear.chunks import Comparison, Side

__all__: list[str] = []  # no loss: these are its inner part

Form = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Problem(Comparison):
    """A `form` of both products, or of the student's labels alone; it goes over `strip` bytes of one at a time (None: over a chunk)."""

    form: Form | None
    teacher: Side | None
    teacher_hidden: Float[Tensor, "tokens width"] | None
    strip: int | None

    @property
    def sides(self) -> int:
        """Those that there are."""
        return 1 if self.teacher is None else 2

    def compare(
        self, hidden: Tensor, here: Any, upstream: Tensor | None, rooms: Tensor, slope: bool
    ) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens classes"]]:
        """The products are taken of many tokens, what follows of few, so that a pass finds in a cache what the last one left."""
        z = self.student.product(hidden, rooms[0])
        t = None
        if self.teacher is not None and self.teacher_hidden is not None:
            t = self.teacher.product(self.teacher_hidden[here], rooms[1])
        columns = [None if c is None else c[here] for c in (self.target, self.weight, upstream)]
        strip = len(z) if self.strip is None else max(1, self.strip // (z.shape[1] * z.element_size()))
        few = range(0, len(z), strip)
        cut = [[None] * len(few) if c is None else c.split(strip) for c in (z, t, *columns)]
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
