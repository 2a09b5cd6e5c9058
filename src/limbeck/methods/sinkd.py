"""SinKD: the student's answers are carried to the teacher's at least cost (Cui et al. 2024, arXiv 2402.17110)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Int64
from pydantic import Field
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.losses.transport import sinkhorn, transported
from limbeck.method import Batch, Card, Transfer
from limbeck.objectives import Loss, Objective, Term, counted
from limbeck.schedules import Scalar
from limbeck.signals import Projection, Signals


class SinKD(Transfer):
    """task_weight * CE + kl_weight * KL(p || q) + transport_weight * (1/n) sum_ij P_ij W_ij; the KL without T^2.

    W_ij is the L1 distance of the student's distribution i from the teacher's j, P the plan that Sinkhorn's iterations make
    of exp(-W / epsilon) (`limbeck.losses.transport`); the sum is divided by n, the code's is not, so its 0.001 at batches of
    16 is 0.016 here. The defaults are the paper's for GLUE. Its T0 setting: task_weight=1, kl_weight=0.1, kl_temperature=1,
    transport_weight=0.0008 * n. `debiased` takes off what equal sides would cost.

    Of a classifier the n distributions are those of the batch. Of a language model (the form is ours; the paper's code
    gives logits as they are) they are the answer tokens of each sequence, or of the batch with `among=batch`, at most
    `tokens` per sequence, evenly spaced; of a large vocabulary only these are multiplied out.
    """

    card = Card(
        "sinkd",
        summary="The student's distributions are moved onto the teacher's, sample against sample, at the least cost.",
        paper="Cui et al.: Sinkhorn Distance Minimization for Knowledge Distillation, COLING 2024, arXiv 2402.17110",
        use_when="classification where student and teacher overlap little, so that KL says little; beside kd",
        cost="as kd; n^2 distances over the classes and 20 passes over an n x n matrix; of language models `tokens` x vocabulary per text",
    )

    temperature: Annotated[float, Field(gt=0)] = 2.0
    epsilon: Annotated[float, Field(gt=0)] = 0.1
    iterations: Annotated[int, Field(ge=1)] = 20
    debiased: bool = False
    transport_weight: Scalar = 0.016
    kl_weight: Scalar = 0.8
    kl_temperature: Annotated[float, Field(gt=0)] = 2.0
    task_weight: Scalar = 0.2
    among: Literal["sequence", "batch"] = "sequence"
    tokens: Annotated[int, Field(ge=1)] = 64

    def setup(self) -> None:
        shape = self.student.shapes.get("logits", ())
        if (
            len(shape) not in (0, 1, 2)
            or shape[-1:] == (1,)
            or (self.task is not None and self.task.name == "regression")
        ):
            raise RecipeError(
                f"sinkd compares distributions over classes, and the student gives logits of shape {list(shape)} per sample. Needed are "
                "[classes] or, of a language model, [tokens, classes], with two classes at least; for numbers take a method on features."
            )
        self.sequences = len(shape) == 2
        self.how: dict[str, Any] = {
            "temperature": self.temperature,
            "epsilon": self.epsilon,
            "iterations": self.iterations,
            "debiased": self.debiased,
        }
        super().setup()
        if self.teacher.sketches:
            raise RecipeError(
                "sinkd measures how far whole distributions are apart, and of this teacher some classes are known only. Take the "
                "teacher itself, or method=forward-kl"
            )

    def objective(self) -> Objective:
        terms = [Term(kl, temperature=self.kl_temperature, scale=False, weight=self.kl_weight)]
        if not self.sequences:
            terms.append(
                Term(sinkhorn, scope="batch", name="transport", weight=self.transport_weight, **self.how)  # type: ignore[arg-type]
            )
        return Objective(*terms)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        loss = super().transfer(student, teacher, batch)
        if not self.sequences:
            return loss
        logits, column = (student["logits"], teacher["logits"]), self.terms.terms[0].mask
        mask = counted(batch, column) if column else torch.ones(logits[0].shape[:2], dtype=torch.bool)
        at, there = spaced(mask.to(batch["id"].device), self.tokens)
        ours, theirs = (rows(side, at)[..., : self.terms.classes] for side in logits)
        if self.among == "batch":
            found = Loss.batch("transport", partial(sinkhorn, **self.how), student=ours, teacher=theirs, mask=there)
        else:
            found = Loss.mean("transport", transported(ours, theirs, mask=there, **self.how), there)
        return loss + self.transport_weight(self.progress) * found


def spaced(
    mask: Bool[Tensor, "batch tokens"], most: int
) -> tuple[Int64[Tensor, "batch most"], Bool[Tensor, "batch most"]]:
    """Up to `most` counted positions per row, evenly spaced, in their order; and which of these places are taken."""
    count, slot = mask.sum(1, keepdim=True), torch.arange(most, device=mask.device)
    rank = torch.where(count > most, (2 * slot + 1) * count // (2 * most), slot)
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)  # the counted ones first
    return order.gather(1, rank.clamp(max=mask.shape[1] - 1)), slot < count


def rows(logits: Tensor | Projection, at: Int64[Tensor, "batch some"]) -> Tensor:
    """Logits of these positions of each row; of a projection nothing else is multiplied out."""
    if isinstance(logits, Projection):
        index = at.unsqueeze(-1).expand(-1, -1, logits.hidden.shape[-1])
        return replace(logits, hidden=logits.hidden.gather(1, index)).materialise()
    return logits.gather(1, at.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
