"""SSLD: distillation without labels, on labelled and unlabelled rows alike (Cui et al. 2021, arXiv 2103.05959)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from limbeck.data.tensors import Split
from limbeck.errors import RecipeError
from limbeck.losses import jeffreys, js, kl
from limbeck.method import Batch, Card, Outcome, Progress, Transfer, Update
from limbeck.methods import shown
from limbeck.objectives import Loss, Objective, Term
from limbeck.randomness import fold, uniform
from limbeck.schedules import Scalar

NO_LABEL = -100
_COMPANION = 0x756E6C6162656C  # "unlabel": apart from the views' draws


class SSLD(Transfer):
    """The divergence of the teacher's and the student's softmax at T, mean over all rows of a step; no labels.

    `divergence`: `jeffreys` is (KL(p || q) + KL(q || p)) / 2, what the released code computes (where it is called JS);
    `js` is Jensen and Shannon's, with the mixture; `kl` is KD's. `parity="released"` takes the sum over the batch times
    the number of classes, as that code does, which ties the learning rate to the batch size.

    `unlabelled` names a further split of the data. Every row of a step brings `per_row` rows drawn from it (with
    replacement, by the row's own seed), so a step mixes both. `per_class` first makes a choice: the teacher is asked
    about the whole split once, and for each class that it guesses, the surest so many rows are kept. With a
    `task_weight` the labelled rows (label of 0 or more) are learnt from as well; the published method leaves it at 0.

    Published: 360 epochs with a cosine schedule, then 30 to 60 on the labelled set at a hundredth of the learning rate.
    """

    card = Card(
        "ssld",
        summary="Only the teacher speaks, on labelled and unlabelled data alike; no label is read.",
        paper="Cui et al.: Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative, 2021, arXiv 2103.05959",
        use_when="there are many more rows than labels, from a like source, and a strong teacher; long schedules",
        cost="as kd for every row, those drawn included; with per_class one pass of the teacher over the unlabelled split",
    )

    divergence: Literal["jeffreys", "js", "kl"] = "jeffreys"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    unlabelled: str | None = None
    per_row: Annotated[int, Field(ge=1)] = 1
    per_class: Annotated[int, Field(ge=1)] | None = None
    parity: Literal["mean", "released"] = "mean"
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        if self.parity == "released":
            if self.divergence != "jeffreys":
                raise RecipeError(
                    f"ssld with parity=released computes jeffreys, and divergence is {self.divergence}. Set one of them."
                )
            return Objective(Term(jeffreys_summed, name="jeffreys", scope="batch", temperature=self.temperature))
        function = {"jeffreys": jeffreys, "js": js, "kl": kl}[self.divergence]
        return Objective(
            Term(function, weight=0.5 if self.divergence == "jeffreys" else 1.0, temperature=self.temperature)
        )

    def setup(self) -> None:
        super().setup()
        if self.task_weight.spec() != 0 and (
            self.task is None or self.task.name not in ("classification", "segmentation")
        ):
            raise RecipeError(
                "ssld with a task_weight tells labelled rows by their class numbers: set task=classification."
            )
        if self.unlabelled is None:
            if self.per_class is not None:
                raise RecipeError("ssld.per_class chooses among the rows of a split: name it, method.unlabelled=SPLIT.")
            return
        split = self.data[self.unlabelled]
        for key in (*shown.columns(self), *([self.mask] if self.mask else [])):
            if key not in split.__getitems__([0]):
                raise RecipeError(
                    f"the split '{self.unlabelled}' has no column '{key}', which ssld needs of every row."
                )
        rows = torch.arange(len(split)) if self.per_class is None else self.surest(split, self.per_class)
        self.register_buffer("pool", rows)
        self.notices.append(f"ssld draws from {len(rows)} of the {len(split)} rows of '{self.unlabelled}'.")

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        yield Update("student", self.loss, batch if self.unlabelled is None else self.joined(batch))

    def loss(self, batch: Batch) -> Loss:
        """As of any transfer, but that the task's mean is over the labelled rows alone."""
        share = self.task_weight(self.progress)
        if share == 0 or self.task.target not in batch:
            return super().loss(batch)
        teacher, student = self.teacher(batch, reads=self.teacher_reads()), self.student(batch)
        loss, target = self.weight(self.progress) * self.transfer(student, teacher, batch), batch[self.task.target]
        values = self.task.function(student["logits"], target.clamp(min=0))
        return loss + share * Loss.mean("task", values, target >= 0)

    def joined(self, batch: Batch) -> Batch:
        """The batch with the rows that its own rows drew behind them; these have no label."""
        assert self.unlabelled is not None
        seeds, pool = fold(batch["view_seed"], _COMPANION), self.get_buffer("pool")
        drawn = (uniform(seeds, self.per_row) * len(pool)).long().clamp(max=len(pool) - 1).flatten()
        more = self.data[self.unlabelled].__getitems__(pool[drawn].tolist())
        more["view_seed"] = torch.cat([fold(seeds, place)[:, None] for place in range(self.per_row)], 1).flatten()
        device, target = batch["id"].device, self.task.target if self.task else None
        both = {key: value for key, value in batch.items() if not isinstance(value, (Tensor, list)) or key == target}
        for key in (key for key in batch if key in more and key != target):
            ours, theirs = batch[key], more[key]
            both[key] = torch.cat([ours, theirs.to(device)]) if isinstance(ours, Tensor) else ours + theirs
        if target in batch:
            labels = batch[target]
            both[target] = torch.cat([labels, labels.new_full((len(drawn), *labels.shape[1:]), NO_LABEL)])
        return both

    def surest(self, split: Split, most: int, size: int = 256) -> Int64[Tensor, "rows"]:
        """The rows that the teacher is surest of, at most so many for each class that it guesses."""
        if len(self.teacher.shapes["logits"]) != 1:
            raise RecipeError(
                "ssld.per_class needs one prediction per row; the teacher's logits have pixels or tokens."
            )
        device = next(self.student.model.parameters()).device
        sure, guessed = [], []
        with torch.no_grad():
            for start in range(0, len(split), size):
                rows = split.__getitems__(list(range(start, min(start + size, len(split)))))
                batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in rows.items()}
                best = self.teacher(batch, reads={"logits"})["logits"].float().softmax(-1).max(-1)
                sure.append(best.values.cpu())
                guessed.append(best.indices.cpu())
        return surest_per_class(torch.cat(sure), torch.cat(guessed), most)


def jeffreys_summed(
    student: Float[Tensor, "batch ..."],
    teacher: Float[Tensor, "batch ..."],
    *,
    temperature: float = 1.0,
    dim: int = -1,
    mask: Tensor | None = None,
) -> Float[Tensor, ""]:
    """C / 2 * sum over the batch of KL(p || q) + KL(q || p), C classes: one number, the released code's reduction."""
    return student.shape[dim] / 2 * jeffreys(student, teacher, temperature=temperature, dim=dim, mask=mask).sum()


def surest_per_class(sure: Float[Tensor, "rows"], guessed: Int64[Tensor, "rows"], most: int) -> Int64[Tensor, "chosen"]:
    """Rows (rising) that are among the `most` surest of the class guessed for them; of equals, the earlier."""
    order = sure.argsort(descending=True, stable=True)
    order = order[guessed[order].argsort(stable=True)]
    classes = guessed[order]
    rank = torch.arange(len(order)) - torch.searchsorted(classes, classes, side="left")
    return order[rank < most].sort().values
