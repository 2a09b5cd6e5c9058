"""What the methods on logits share: where the classes are, what counts, and labels among the classes of both."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from limbeck.errors import RecipeError, nearest
from limbeck.losses.masking import aligned
from limbeck.method import Batch, Transfer, name_of
from limbeck.objectives import Loss
from limbeck.signals import Signals


def class_dim(shape: tuple[int, ...]) -> int:
    """Where the classes are in a batch of logits that have this shape without the batch.

    1 in maps [classes, height, width], else the last ([classes], [tokens, classes]).
    """
    return 1 if len(shape) == 3 else -1


class LogitTransfer(Transfer):
    """A transfer between logits: [batch, classes], [batch, tokens, classes], or [batch, classes, height, width].

    `mask` names a column (bool; a value per sample, token or pixel) of what counts; without it all does.
    """

    mask: str | None = None

    @property
    def dim(self) -> int:
        """The dimension of the classes."""
        return class_dim(self.student.shapes.get("logits", ()))

    def setup(self) -> None:
        if self.mask is not None and self.mask not in (row := self.data["train"].__getitems__([0])):
            raise RecipeError(
                f"{name_of(type(self))}.mask is '{self.mask}', no column of the data. {nearest(self.mask, row)}"
            )
        super().setup()

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        return super().transfer(student, teacher, self.masked(student, batch))

    def masked(self, student: Signals, batch: Batch) -> Batch:
        """The batch with its mask in the shape of the values, which a mean is taken over."""
        if self.mask is None:
            return batch
        shape = list(student["logits"].shape)
        del shape[self.dim]
        mask = aligned(batch[self.mask], torch.Size(shape), "mask")
        return batch if list(mask.shape) == shape else {**batch, self.mask: mask.expand(shape)}


class LabelledTransfer(LogitTransfer):
    """Logit terms that look at the right class too.

    What has a label below 0 does not count, nor what is of a class that only the student knows.
    """

    def setup(self) -> None:
        name, task = name_of(type(self)), self.task
        if task is None or task.name not in ("classification", "segmentation"):
            raise RecipeError(
                f"{name} weighs the right class apart from the others, so it needs one label per sample, token or pixel; "
                f"the task is {task.name if task else 'not given'}. Set task=classification, or take kd, which needs none."
            )
        if task.target not in self.data["train"].__getitems__([0]):
            raise RecipeError(
                f"{name} needs the label of every training sample, and the data have no column '{task.target}'. "
                "Name the column of the labels (task.target=...), or take kd, which needs none."
            )
        super().setup()
        self.counts = self.mask is not None or self.terms.match is not None or len(self.student.shapes["logits"]) > 1
        for term in self.terms.terms:
            term.mask = "counts" if self.counts else None

    def masked(self, student: Signals, batch: Batch) -> Batch:
        """The batch with labels among the shared classes, and with what counts: labelled, and not masked."""
        if not self.counts:
            return batch
        target = self._among_shared(batch[self.task.target])
        counts = (target >= 0) & super().masked(student, batch)[self.mask].bool() if self.mask else target >= 0
        return {**batch, self.task.target: target, "counts": counts}

    def _among_shared(self, target: Int64[Tensor, "batch ..."]) -> Int64[Tensor, "batch ..."]:
        """The labels' places among the classes that both sides know; -1 where there is none."""
        if self.terms.match is None:
            return target
        shared = torch.tensor(self.terms.match.student, device=target.device)
        places = torch.full((len(self.student.labels or ()),), -1, device=target.device)
        places[shared] = torch.arange(len(shared), device=target.device)
        return torch.where(target >= 0, places[target.clamp(min=0)], -1)
