"""What methods share that look at the right class among the logits: which labels there are, and which of them count."""

from __future__ import annotations

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
        self._counted = self.mask is not None or self.terms.match is not None
        dense = len(self.student.shapes["logits"]) > 1
        for term in self.terms.terms:
            term.mask = "counts" if self._counted else task.target if dense else None

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        if self._counted:
            target, match = batch[self.task.target], self.terms.match
            shared = target if match is None else match.of_target(target, len(self.student.labels or ()))
            counts = shared >= 0
            if self.mask is not None:
                counts = counts & aligned(counted(batch, self.mask), target.shape, "mask")
            batch = {**batch, "counts": counts}
        return super().transfer(student, teacher, batch)
