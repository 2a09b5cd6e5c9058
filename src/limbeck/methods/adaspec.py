"""AdaSPEC: a draft model learns the tokens that a model of its size can learn (2025, arXiv 2510.19779)."""

from __future__ import annotations

import copy
import math
from collections.abc import Generator, Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.actors import Teacher
from limbeck.data.collate import pick
from limbeck.engine import weights
from limbeck.language.likelihood import values_of
from limbeck.language.rollouts import undisturbed
from limbeck.language.writing import everywhere
from limbeck.losses import kl
from limbeck.method import Batch, Card, Procedure, Stage, StageResult, Transfer
from limbeck.methods.token_kd import ForwardKL
from limbeck.objectives import Objective, Term, counted
from limbeck.schedules import Scalar

ROWS = 16
"""How many rows are looked at together while tokens are chosen, which needs no graph."""


def greatest(values: Float[Tensor, "n"], share: float) -> Float[Tensor, ""]:
    """The ceil(share * n)-th greatest value: at least that many are not below it (all that tie with it); n >= 1."""
    most = max(1, math.ceil(share * len(values) - 1e-9))
    return values.kthvalue(len(values) + 1 - most).values


class Draft(Transfer):
    """KL(p_t || q_t), a mean over the chosen tokens at temperature 1.

    Chosen, of all answer tokens of a step (over pieces and processes), is the fraction `k` with the greatest excess
    d_S - d_R, d_S = KL(p || q) of the student as it is, d_R = KL(p || q_ref) of the reference; tokens that tie with the
    least of them are chosen too. Without dropout, without a gradient, before the loss.
    """

    card = Card("adaspec-draft", "Stage 2 of adaspec: forward KL on the tokens that are worth it.", listed=False)

    k: Annotated[float, Field(gt=0, le=1)] = 0.4
    task_weight: Scalar = 0.0

    def __init__(self, reference: Mapping[str, Tensor], **options: Any):
        super().__init__(**options)
        self._weights = reference

    def objective(self) -> Objective:
        return Objective(Term(kl, mask="chosen", name="adaspec"))

    def setup(self) -> None:
        super().setup()
        model = copy.deepcopy(self.student.model)
        weights.give(model, self._weights)
        self.reference = Teacher(model, view=self.student.view, taps=self.student.paths)

    def draw(self, batch: Batch) -> Batch:
        mask = counted(batch, "answer")
        excess = torch.cat([self.excess(pick(batch, rows)) for rows in torch.arange(len(mask)).split(ROWS)])
        own = excess[mask & torch.full_like(mask, not batch.get("ghost"))]
        everyone = everywhere({"excess": own})["excess"]
        return batch | {"chosen": mask & (excess >= greatest(everyone, self.k)) if len(everyone) else mask}

    @torch.no_grad()
    def excess(self, batch: Batch) -> Float[Tensor, "batch tokens"]:
        """KL(p || q) - KL(p || q_ref) of every answer token, in nats; 0 of the others."""
        mask, theirs = counted(batch, "answer"), self.teacher(batch, reads={"logits"})["logits"]
        with undisturbed(self.student.model):  # no dropout, as in the reference: what is unlucky is not what is hard
            ours = self.student(batch)["logits"]
        classes = {"classes": self.terms.classes} if self.terms.classes is not None else {}
        values = [
            values_of(kl, z, theirs, mask, **classes) for z in (ours, self.reference(batch, reads={"logits"})["logits"])
        ]
        return values[0] - values[1]


class AdaSPEC(Procedure):
    """Two trainings from the same start: a reference by plain forward KL, then the draft on selected tokens.

    The reference is the student itself after the first stage; that weights of its size could fit a token is what makes
    the token worth learning. It then goes back to its start and learns, of all answer tokens of a step, the fraction `k` that
    it fits worst compared with the reference. With k = 1 the second stage is `forward-kl`. `reference` is the budget of the
    first stage (`{steps: 200}`, or keys of `train`); empty: the recipe's own. Checkpoints hold the student three times:
    as it is, as it began, and as the reference; what ships is the student alone.
    """

    card = Card(
        "adaspec",
        summary="A draft model learns the tokens that a model of its size can learn and it has not learnt yet.",
        paper="Hu et al.: AdaSPEC: Selective Knowledge Distillation for Efficient Speculative Decoders, 2025, arXiv 2510.19779",
        use_when="a draft for speculative decoding that is far smaller than its target and cannot fit all of it",
        cost="two trainings; in the second one more pass of target, draft and reference per text, without gradients",
    )

    k: Annotated[float, Field(gt=0, le=1)] = 0.4
    reference: dict[str, Any] = {}
    task_weight: Scalar = 0.0

    def stages(self) -> Generator[Stage, StageResult, None]:
        """The reference, then the draft from the same start."""
        start = self.remember("start", weights.take, self.student.model)
        yield Stage("reference", ForwardKL(task_weight=self.task_weight), train=self.reference)
        reference = self.remember("reference", weights.take, self.student.model)
        weights.give(self.student.model, start)
        yield Stage("draft", Draft(reference, k=self.k, task_weight=self.task_weight))


__all__ = ["AdaSPEC", "Draft"]
