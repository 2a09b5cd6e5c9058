"""TRG: knowledge distillation via a token-level relationship graph (Zhang et al. 2023, arXiv 2306.12442)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn

from limbeck.bridges import Resample
from limbeck.errors import RecipeError
from limbeck.layers import LayerTransfer
from limbeck.losses.contrastive import info_nce
from limbeck.losses.graph import inner_relations, token_neighbours
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.randomness import fold, uniform
from limbeck.schedules import Linear, Scalar, to_schedule
from limbeck.signals import Signals

_DRAW = 0x747267  # the salt of the draw of tokens


class TRG(LayerTransfer):
    """task_weight * task + weight * (inner + local + contrast), on tokens: the positions of a map, or of a sequence.

    - inner: the similarities of the tokens within each sample (`inner_weight`);
    - local: over `tokens` tokens drawn from the whole batch, each one's nearest `neighbours` (`local_weight`);
    - contrast: over the same tokens, mapped linearly to `width`, each of the student's finds its own among the
      teacher's, at a temperature that falls (`contrast_weight`): first the coarse order, then the fine one.

    The paper adds plain distillation of the logits: `kd+trg`. Its weights, numbers and schedule are not published in
    what was read: all defaults are choices. Larger maps are averaged down to the smaller one's positions.
    """

    card = Card(
        "trg",
        summary="Tokens of a whole batch keep their nearest neighbours, their counterparts and their places in the image.",
        paper="Zhang et al.: Knowledge Distillation via Token-level Relationship Graph, 2023, arXiv 2306.12442",
        needs=("map",),
        use_when="unbalanced classes, or local structure matters; add it to kd",
        cost="tokens^2 distances per step (512: small), two linear maps",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "map"

    inner_weight: Scalar = 1.0
    local_weight: Scalar = 1.0
    contrast_weight: Scalar = 1.0
    tokens: Annotated[int, Field(ge=2)] = 512
    neighbours: Annotated[int, Field(ge=1)] = 8
    spread: Annotated[float, Field(gt=0)] = 1.0
    direction: Literal["teacher-first", "student-first"] = "teacher-first"
    width: Annotated[int, Field(ge=1)] = 128
    temperature: Scalar = Linear(start=0.5, end=0.07)

    def setup(self) -> None:
        super().setup()
        if len(self.pairs) != 1:
            raise RecipeError(f"trg compares one pair of layers, and trg.layers names {len(self.pairs)}. Name one.")
        ours, theirs = (a.shapes[name] for a, name in zip((self.student, self.teacher), self.pairs[0]))
        for whose, shape in (("student", ours), ("teacher", theirs)):
            if len(shape) not in (2, 3):
                raise RecipeError(
                    f"trg compares tokens [tokens, width] or maps [channels, height, width]; the {whose}'s is {list(shape)}."
                )
        self.size = None
        if len(ours) == len(theirs) == 3:
            self.size = (min(ours[1], theirs[1]), min(ours[2], theirs[2]))
        elif math.prod(_positions(ours)) != math.prod(_positions(theirs)):
            raise RecipeError(
                f"trg needs the same tokens of both: the student's {list(ours)} and the teacher's {list(theirs)} have "
                f"{math.prod(_positions(ours))} and {math.prod(_positions(theirs))}. Name other places with method.layers."
            )
        self.maps = nn.ModuleList(nn.Linear(s[0] if len(s) == 3 else s[1], self.width) for s in (ours, theirs))

    def teacher_reads(self) -> set[str]:
        return {self.pairs[0][1]}

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        ours, theirs = self._tokens(student[self.pairs[0][0]]), self._tokens(teacher[self.pairs[0][1]])
        seeds = fold(batch["view_seed"] if "view_seed" in batch else batch["id"], _DRAW)
        both = {"student": ours, "teacher": theirs, "seeds": seeds}
        loss = to_schedule(self.inner_weight)(self.progress) * Loss.mean("inner", inner_relations(ours, theirs))
        loss = loss + to_schedule(self.local_weight)(self.progress) * Loss.batch("local", self._local, **both)
        return loss + to_schedule(self.contrast_weight)(self.progress) * Loss.batch("contrast", self._contrast, **both)

    def _tokens(self, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch tokens width"]:
        if x.dim() == 4:
            x = (Resample(self.size)(x) if self.size is not None else x).flatten(2).mT
        return x

    def _drawn(
        self, student: Tensor, teacher: Tensor, seeds: Int64[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "drawn ours"], Float[Tensor, "drawn theirs"]]:
        """The same tokens of both, evenly drawn from all; which, depends on the samples' seeds alone and not on pieces."""
        lots = uniform(seeds, student.shape[1]).flatten()
        picked = lots.topk(min(self.tokens, len(lots))).indices
        return student.flatten(0, 1)[picked], teacher.flatten(0, 1)[picked]

    def _local(self, student: Tensor, teacher: Tensor, seeds: Tensor) -> Float[Tensor, "drawn"]:
        ours, theirs = self._drawn(student, teacher, seeds)
        back = self.direction == "student-first"
        return token_neighbours(ours, theirs, neighbours=self.neighbours, spread=self.spread, reverse=back)

    def _contrast(self, student: Tensor, teacher: Tensor, seeds: Tensor) -> Float[Tensor, "drawn"]:
        ours, theirs = (m(x) for m, x in zip(self.maps, self._drawn(student, teacher, seeds)))
        return info_nce(ours, theirs, temperature=to_schedule(self.temperature)(self.progress))


def _positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[1:] if len(shape) == 3 else shape[:1]
