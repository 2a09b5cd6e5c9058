"""One-for-All: a student of another architecture learns at every stage, in the space of logits (Hao et al. 2023)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from limbeck import layers
from limbeck.actors import Teacher
from limbeck.bridges.exits import exit_for
from limbeck.errors import RecipeError
from limbeck.losses.ofa import ofa, sharpened, sharpened_cross_entropy
from limbeck.method import Batch, Card, Transfer
from limbeck.objectives import Loss, Objective, Term
from limbeck.signals import Signals

Positive = Annotated[float, Field(gt=0)]


class OFA(Transfer):
    """task_weight * task + weight * (logits_weight * L(z_s) + exits_weight * sum over exits l of L(z_l)).

    L(z) = -sum_c [(p_c + m_c)^e - m_c] log softmax(z / T)_c with p = softmax(teacher / T) and m the one-hot class: with
    e = 1 the soft cross-entropy of KD (no T^2), with e > 1 the target class is sharpened. Features of unlike
    architectures are not compared at all: each stage of the student gets an exit to logits of its own (convolutions,
    transformer blocks or an MLP, by what the stage gives), which learns with it and is left behind.

    `exponent` is one number, or one for each exit and then one for the logits. `exits` names the places, from the input
    on; None: one per stage, at most 4, proposed. `width` is that of the exits, None: the larger embedding of the two.
    Everything is a mean over samples.
    """

    card = Card(
        "ofa",
        summary="Every stage of the student gets an exit to logits that learns from the teacher's logits, its target class sharpened.",
        paper="Hao, Guo, Han, Hu, Tang, Wang, Xu: One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, NeurIPS 2023, arXiv 2310.19444",
        use_when="teacher and student are of different families (transformer, CNN, MLP); classification with labels",
        cost="one forward pass of the teacher per sample, and a small head per stage of the student while training",
    )

    exponent: Positive | list[Positive] = 1.0
    temperature: Positive = 1.0
    logits_weight: Annotated[float, Field(ge=0)] = 1.0
    exits_weight: Annotated[float, Field(ge=0)] = 1.0
    exits: list[str] | None = None
    width: Annotated[int, Field(ge=1)] | None = None

    def objective(self) -> Objective:
        return Objective(Term(ofa, temperature=self.temperature))  # it checks that both know the same classes

    def prepare(self) -> None:
        batch = self._few()
        places = self.exits if self.exits is not None else layers.stages(self.student, batch, 4)
        self.places = [layers.listen(self.student, place) for place in places]
        count = len(self.places) + 1
        given = self.exponent if isinstance(self.exponent, list) else [self.exponent] * count
        if len(given) != count:
            raise RecipeError(
                f"ofa.exponent has {len(given)} numbers; with exits at {', '.join(self.places)} it has {count}, the last for the logits."
            )
        self.exponents = given
        self.notices.append(
            f"ofa: exits after {', '.join(self.places)} of the student. Others: method.exits=[place, ...]"
        )

    def setup(self) -> None:
        super().setup()
        shapes, logits = self.student.shapes, self.student.shapes["logits"]
        match = self.terms.match
        if self.task is None or len(logits) != 1 or (match is not None and len(match.student) != logits[0]):
            raise RecipeError(
                f"ofa sharpens the true class of every sample: needed are a task and logits [classes] that the teacher all knows; the student's are {list(logits)}."
            )
        for name in self.places:
            if name not in shapes:
                raise RecipeError(f"ofa reads '{name}': {self.student.lacks(name)}")
        width = self.width or max(_width(shapes[self.places[-1]]), self._teachers_width())
        first = 5 - len(self.places)  # stages are counted from the last, which is the 4th
        self.heads = nn.ModuleList(
            exit_for(shapes[name], max(first + i, 1), width, logits[0]) for i, name in enumerate(self.places)
        )

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        theirs, match = teacher["logits"], self.terms.match
        theirs = theirs if match is None else match.of_teacher(theirs)
        target = batch[self.task.target]
        shares = {e: sharpened(theirs, target, exponent=e, temperature=self.temperature) for e in set(self.exponents)}
        share = torch.stack([shares[e] for e in self.exponents]) if len(shares) > 1 else shares[self.exponents[0]]
        said = torch.stack([*(head(student[name]) for head, name in zip(self.heads, self.places)), student["logits"]])
        apart = sharpened_cross_entropy(said, share, temperature=self.temperature)
        exits = self.exits_weight * Loss.mean("exits", apart[:-1].sum(0))
        return exits + self.logits_weight * Loss.mean("logits", apart[-1])

    def _teachers_width(self) -> int:
        """Of its embedding; 0 where it has no network of its own to look at."""
        several = isinstance(self.teacher, Teacher) and len(self.teacher.members) > 1
        if several or self.teacher.stored:
            return getattr(self.teacher, "embedding_width", 0)
        heard, logits = layers.hear(self.teacher, layers.on_device(self.teacher, self._few()))
        last = [h.module for h in heard if isinstance(h.module, nn.Linear) and logits is not None]
        return last[-1].in_features if last else 0

    def _few(self) -> Batch:
        split = self.data.splits["train"]
        return layers.on_device(self.student, split.__getitems__(list(range(min(2, len(split))))))


def _width(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]
