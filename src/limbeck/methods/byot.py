"""Be your own teacher (Zhang, Song, Gao, Chen, Bao and Ma 2019, arXiv 1905.08094)."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck import layers
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.losses.masking import widened
from limbeck.method import Batch, Card, Method
from limbeck.models.exits import Exit
from limbeck.objectives import Loss
from limbeck.schedules import Fraction


class BYOT(Method):
    """The student's own last layers teach exits after its earlier stages, which are left behind at export.

    L = (1 - a) * task of every head + a * sum over exits of T^2 KL(sg p || p_i) + b * sum over exits of the hint
    sum over elements of (f_i - sg f)^2 where f_i > 0 or f > 0 (equations 2 to 5; a = `share`, b = `hint_weight`).
    p, f are the student's own prediction and last feature, p_i, f_i an exit's, f_i brought to the shape of f.

    Everything is a mean over samples. The released code sums the hint over its batch of 128 with b = 1e-6: hence 1.28e-4.
    `exits` names the places, the last one that of f; None: one place per stage, proposed from what the network computes.
    """

    card = Card(
        "byot",
        summary="Exits after the student's earlier stages learn from its own last one; no teacher.",
        paper="Zhang, Song, Gao, Chen, Bao, Ma: Be Your Own Teacher, ICCV 2019, arXiv 1905.08094",
        needs=(),
        teacher_mode="none",
        use_when="no teacher; deep networks with stages, classification",
        cost="one small head per stage while training",
    )

    exits: list[str] | None = None
    most: Annotated[int, Field(ge=2)] = 4
    share: Fraction = 0.1
    temperature: Annotated[float, Field(gt=0)] = 3.0
    hint_weight: Annotated[float, Field(ge=0)] = 1.28e-4

    def prepare(self) -> None:
        split = self.data.splits["train"]
        batch = layers.on_device(self.student, split.__getitems__(list(range(min(2, len(split))))))
        places = self.exits if self.exits is not None else layers.stages(self.student, batch, self.most)
        if len(places) < 2:
            raise RecipeError(
                f"byot needs an earlier and a last place in the student, and there is {', '.join(places) or 'none'}. "
                "Name them: method.exits=[early, ..., last] (limbeck inspect MODEL lists the paths)."
            )
        *self.early, self.last = [layers.listen(self.student, place) for place in places]
        self.notices.append(f"exits at {', '.join(self.early)}, taught by {self.last} and the logits.")

    def setup(self) -> None:
        shapes, logits = self.student.shapes, self.student.shapes["logits"]
        if self.task is None or len(logits) != 1:
            raise RecipeError(
                f"byot classifies whole samples at its exits: needed are a task and logits [classes], not {list(logits)}."
            )
        self.heads = nn.ModuleList(Exit(shapes[name], shapes[self.last], logits[0]) for name in self.early)

    def loss(self, batch: Batch) -> Loss:
        signals = self.student(batch)
        last, said = signals[self.last].detach(), signals["logits"].detach()
        loss = (1 - self.share) * self.task.loss(signals, batch)
        for i, (name, head) in enumerate(zip(self.early, self.heads), 1):
            feature, logits = head(signals[name])
            (right,) = self.task.loss({"logits": logits}, batch).parts.values()  # type: ignore[arg-type]
            loss = loss + (1 - self.share) * Loss({f"task.exit{i}": right})
            loss = loss + self.share * Loss.mean(f"soft.exit{i}", kl(logits, said, temperature=self.temperature))
            loss = loss + self.hint_weight * Loss.mean(f"hint.exit{i}", active_distance(feature, last))
        return loss


def active_distance(early: Float[Tensor, "batch ..."], last: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch"]:
    """Sum over a sample's elements of (early - last)^2, counted where at least one of the two is above zero."""
    early, last = widened(early), widened(last)
    apart = torch.where((early > 0) | (last > 0), early - last, 0.0)
    return apart.square().flatten(1).sum(1)
