"""What methods share that look at the right class among the logits: which labels there are, and which of them count."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned
from limbeck.method import Batch, Transfer, name_of
from limbeck.objectives import Loss, counted
from limbeck.signals import Signals


class LabelledTransfer(Transfer):
    """Terms on logits that look at the label too.

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
        some_lack = self.terms.match is not None or len(self.student.shapes["logits"]) > 1
        for term in self.terms.terms:
            term.mask = "counts" if self.mask is not None else task.target if some_lack else None

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        target = self._among_shared(batch[self.task.target])
        own = {**batch, self.task.target: target}
        if self.mask is not None:
            own["counts"] = (target >= 0) & aligned(counted(batch, self.mask), target.shape, "mask")
        return super().transfer(student, teacher, own)

    def _among_shared(self, target: Int64[Tensor, "batch ..."]) -> Int64[Tensor, "batch ..."]:
        """The labels' places among the classes that both sides know; -1 where there is none."""
        if self.terms.match is None:
            return target
        shared = torch.tensor(self.terms.match.student, device=target.device)
        places = torch.full((len(self.student.labels or ()),), -1, device=target.device)
        places[shared] = torch.arange(len(shared), device=target.device)
        return torch.where(target >= 0, places[target.clamp(min=0)], -1)
