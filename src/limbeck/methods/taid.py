"""TAID: the target moves from the student to the teacher, as fast as the student follows (Shing et al. 2025, arXiv 2501.16937)."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.language.likelihood import values_of
from limbeck.losses import kl
from limbeck.method import Batch, Card, Transfer
from limbeck.objectives import Loss, Objective, Term, counted
from limbeck.schedules import Fraction, Scalar
from limbeck.signals import Projection, Signals, weighted_sum

Logits = Float[Tensor, "batch tokens classes"] | Projection


def between(student: Logits, teacher: Logits, t: float, classes: int | None = None) -> Logits:
    """(1 - t) z_S + t z_T, a constant. Of two projections it is one: of both hidden states side by side, never multiplied out.

    `classes`: only the first so many are there on both sides.
    """
    with torch.no_grad():
        if isinstance(student, Projection) and isinstance(teacher, Projection):
            return weighted_sum([(student, 1 - t), (teacher, t)], classes)
        ours, theirs = (side.materialise() if isinstance(side, Projection) else side for side in (student, teacher))
        return (1 - t) * ours[..., :classes] + t * theirs[..., :classes]


class TAID(Transfer):
    """KL(p_t || q), p_t = softmax((1 - t) sg[z_S] + t z_T), a mean over answer tokens at temperature 1 (eq. 3, 4).

    The logit gradient is q - p_t, zero at t = 0 and forward KL's at t = 1. After every step, with J the loss over the whole
    batch (no gradient; eq. 5 to 7):

        delta = (J_before - J) / (J_before + 1e-15);  m = momentum m + (1 - momentum) delta
        t = min(1, max(start + (1 - start) s / S, t + rate sigmoid(m) (1 - t)))

    so t never falls and is never behind the straight line; `adaptive=false` keeps to the line. t, m and J are buffers.
    """

    card = Card(
        "taid",
        summary="A target that moves from the student's own distribution to the teacher's as the student follows.",
        paper="Shing, Misaki, Bao, Yokoi, Akiba: TAID, ICLR 2025, arXiv 2501.16937",
        use_when="the teacher is far above the student, so that plain KL asks for too much at first",
        cost="as forward KL, with one more product of the student's head; the method's weights are a copy of both heads for a moment",
    )

    start: Fraction = 0.4
    rate: Annotated[float, Field(ge=0)] = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    adaptive: bool = True
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(Term(kl, name="taid"))  # settles classes, mask and tokenizers as for any logits

    def setup(self) -> None:
        super().setup()
        if self.teacher.sketches:
            raise RecipeError(
                "taid mixes the teacher's logits with the student's, and of this teacher some classes are known only. "
                "Take the teacher itself, or method=forward-kl"
            )
        self.t = nn.Buffer(torch.tensor(self.start, dtype=torch.float64))
        self.before = nn.Buffer(torch.tensor(torch.nan, dtype=torch.float64))
        self.pace = nn.Buffer(torch.zeros((), dtype=torch.float64))

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        (term,) = self.terms.terms
        mask = counted(batch, term.mask) if term.mask else None
        classes = self.terms.classes
        ours = student["logits"]
        target = between(ours, teacher["logits"], float(self.t), classes)
        if mask is None:
            mask = torch.ones(ours.shape[:-1], dtype=torch.bool, device=batch["id"].device)
        values = values_of(kl, ours, target, mask, classes=classes)
        loss = Loss.mean("taid", values, mask)
        sums, count = (x.detach().double().reshape(len(x), -1).sum(1) for x in (values, mask))
        loss.record |= {"taid.sum": sums, "taid.count": count}
        return loss

    def keep(self, record: dict[str, Tensor]) -> None:
        """The loss over the whole step moves the target."""
        count = record["taid.count"].sum()
        if not count:
            return
        now = record["taid.sum"].sum() / count
        line = self.start + (1 - self.start) * self.progress.fraction
        step = torch.zeros_like(self.t)
        if self.adaptive and not self.before.isnan():
            delta = (self.before - now) / (self.before + 1e-15)
            self.pace.mul_(self.momentum).add_((1 - self.momentum) * delta)
            step = self.rate * self.pace.sigmoid() * (1 - self.t)
        if not self.before.isnan():  # the first loss has nothing before it
            self.t.copy_(torch.clamp(torch.maximum(self.t + step, torch.full_like(self.t, line)), max=1.0))
        self.before.copy_(now)
