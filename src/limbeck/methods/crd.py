"""Contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv 1910.10699)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.layers import LayerTransfer
from limbeck.losses.contrastive import memory_scores, nce
from limbeck.losses.masking import widened
from limbeck.memories import Entries, columns
from limbeck.method import Batch, Card
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.signals import Signals

SIDES = ("student", "teacher")


class CRD(LayerTransfer):
    """task_weight * task + weight * (NCE of the student in the teacher's memory + of the teacher in the student's).

    Both embeddings are mapped linearly to `width` numbers of length 1 (both maps learn). Two memories hold the last
    mapped embedding of every training row, as a running mean: m <- normalise(momentum m + (1 - momentum) g). A sample's
    candidates are its own row and `negatives` rows of other classes, drawn evenly, with replacement as the theory of
    NCE has it (of all other rows, where the task has no classes). Scores are <m, g> / temperature; the normaliser of
    each side is estimated on the first batch, Z = mean(exp(score)) * rows, and kept (equation 19 and released code).
    """

    card = Card(
        "crd",
        summary="Of thousands of remembered teacher embeddings, the student's picks its own sample's, and the other way round.",
        paper="Tian, Krishnan, Isola: Contrastive Representation Distillation, ICLR 2020, arXiv 1910.10699",
        needs=("embedding",),
        use_when="many epochs over a fixed training set; strong where embeddings are used afterwards",
        cost="one forward pass of the teacher; 2 x rows x width numbers of memory",
    )
    proposes: ClassVar[Literal["embedding", "map", "stages"]] = "embedding"

    weight: Scalar = 0.8
    width: Annotated[int, Field(ge=1)] = 128
    negatives: Annotated[int, Field(ge=1)] = 16384
    temperature: Annotated[float, Field(gt=0)] = 0.07
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    positive: Literal["itself", "class"] = "itself"

    def setup(self) -> None:
        super().setup()
        if len(self.pairs) != 1:
            raise RecipeError(f"crd contrasts one pair of layers, and crd.layers names {len(self.pairs)}. Name one.")
        shapes = (self.student.shapes[self.pairs[0][0]], self.teacher.shapes[self.pairs[0][1]])
        self.maps = nn.ModuleDict({side: nn.Linear(math.prod(s), self.width) for side, s in zip(SIDES, shapes)})
        self.entries = Entries.of(self.data.splits["train"])
        begin = 2 * torch.rand(2, len(self.entries), self.width) - 1
        self.banks = nn.Buffer(begin * math.sqrt(3 / self.width))  # with the variance of a unit vector's entries
        self.log_normalisers = nn.Buffer(torch.full((2,), torch.nan))
        self._sort_by_class(self._classes())

    def _classes(self) -> Int64[Tensor, "rows"]:
        """The class of every training row; each its own where the task has none."""
        if self.task is None or self.task.name != "classification":
            return torch.arange(len(self.entries))
        return columns(self.data.splits["train"], [self.task.target])[self.task.target].unique(return_inverse=True)[1]

    def _sort_by_class(self, classes: Int64[Tensor, "rows"]) -> None:
        counts = classes.bincount()
        if len(counts) < 2:
            raise RecipeError("crd draws negatives from other classes, and all training rows are of one class.")
        begins = counts.cumsum(0) - counts
        self.class_order = nn.Buffer(classes.argsort(stable=True), persistent=False)
        self.class_begin = nn.Buffer(begins[classes], persistent=False)
        self.class_count = nn.Buffer(counts[classes], persistent=False)

    def teacher_reads(self) -> set[str]:
        return {self.pairs[0][1]}

    def draw(self, batch: Batch) -> Batch:
        """The candidates; a further column marks the first batch, whose own scores are the normaliser."""
        batch = batch | {"crd_entries": self.candidates(self.entries(batch["id"]))}
        first = bool(self.log_normalisers.isnan().any())
        return batch | {"crd_first": torch.ones_like(batch["id"])} if first else batch

    def candidates(self, entries: Int64[Tensor, "batch"]) -> Int64[Tensor, "batch picks"]:
        """Per sample its positive's entry, then those of its negatives, drawn at random.

        Rows lie in a ring, sorted by class: from the end of a sample's class on, all others follow.
        """
        rows, begin, count = len(self.entries), self.class_begin[entries, None], self.class_count[entries, None]

        def drawn(picks: int, among: Tensor) -> Tensor:
            share = torch.rand(len(entries), picks, dtype=torch.float64, device=entries.device)
            return (share * among).long()

        negatives = self.class_order[(begin + count + drawn(self.negatives, rows - count)) % rows]
        positive = entries[:, None] if self.positive == "itself" else self.class_order[begin + drawn(1, count)]
        return torch.cat([positive, negatives], 1)

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        heard = {"student": student[self.pairs[0][0]], "teacher": teacher[self.pairs[0][1]]}
        mapped = {side: F.normalize(widened(self.maps[side](x.flatten(1))), dim=1) for side, x in heard.items()}
        loss, entries = Loss(record={"crd_entry": batch["id"]}), batch["crd_entries"]
        for i, side in enumerate(SIDES):
            scores = memory_scores(self.banks[1 - i], mapped[side], entries) / self.temperature  # the other's bank
            loss.record[f"crd_{side}"] = mapped[side]
            if "crd_first" in batch:
                loss.record[f"crd_mean_{side}"] = scores.logsumexp(1) - math.log(scores.shape[1])
                loss = loss + Loss.batch(f"crd.{side}", self._self_normalised, scores=scores)
            else:
                values = nce(scores[:, 0], scores[:, 1:], self.log_normalisers[i], len(self.entries))
                loss = loss + Loss.mean(f"crd.{side}", values)
        return loss

    def _self_normalised(self, scores: Float[Tensor, "batch picks"]) -> Float[Tensor, "batch"]:
        means = scores.detach().logsumexp(1) - math.log(scores.shape[1])
        return nce(scores[:, 0], scores[:, 1:], self._log_normaliser(means), len(self.entries))

    def _log_normaliser(self, means: Float[Tensor, "batch"]) -> Float[Tensor, ""]:
        """log Z, Z = mean(exp(score)) * rows, from the log-means of the samples."""
        return means.logsumexp(0) + math.log(len(self.entries) / len(means))

    def keep(self, record: dict[str, Tensor]) -> None:
        """What the maps gave before the step goes into the memories."""
        entries = self.entries(record["crd_entry"])
        for i, side in enumerate(SIDES):
            mean = torch.lerp(record[f"crd_{side}"], self.banks[i, entries], self.momentum)
            self.banks[i, entries] = F.normalize(mean, dim=1)
            if f"crd_mean_{side}" in record:
                self.log_normalisers[i] = self._log_normaliser(record[f"crd_mean_{side}"])
