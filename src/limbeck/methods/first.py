"""FIRST: a few numbers of a teacher, made trustworthy before they are taught (Shum et al. 2024, arXiv 2408.12168)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.evaluation import calibration
from limbeck.layers import on_device
from limbeck.losses import kl, sketched
from limbeck.losses.sketched.recalibration import among_the_known, as_released, narrowed, smoothed, tempered, top
from limbeck.method import Batch, Card, Transfer
from limbeck.objectives import Loss, Objective, Term, counted
from limbeck.schedules import Scalar
from limbeck.signals import Signals
from limbeck.sketches import Sketch

_AT_A_TIME = 16  # validation rows


class FIRST(Transfer):
    """KL(w || q) over k + 1 buckets: the teacher's k most probable classes, recalibrated, and all others together.

    The few numbers p_1 .. p_k and the rest p_o = 1 - sum p become w by

    - `temperature`: w = softmax((log p_1, .., log p_k, log p_o) / c), the rest as one number, with one c for all. It is fitted
      before training, to the teacher's answers on up to `samples` rows of the validation split: most trust, accuracy less
      expected calibration error (`fit=trust`), or the greatest likelihood (`fit=likelihood`). `c` gives it; it is a buffer.
    - `smoothing`: `delta` goes from p_1 to the other known ones in equal shares, never so much that another becomes the first.

    The student's buckets are those of its whole softmax. With `rest=none` both sides know the k alone and sum to 1 there,
    which leaves the student's other classes to themselves. A mean over answer tokens; `reduction=sequences` is the paper's,
    summed over tokens, a mean over texts. `parity=released` is what the published script minimises: no c, per text, sum_i
    e^{p_i} (p_i - q_i) over the six probabilities (taken for logarithms there), less its least value. That is no divergence:
    it is smallest where the student gives everything to the largest.
    """

    card = Card(
        "first",
        summary="The teacher's few most probable answers, their confidence corrected on held-out data first.",
        paper="Shum et al.: FIRST: Teach A Reliable Large Language Model Through Efficient Trustworthy Distillation, EMNLP 2024, arXiv 2408.12168",
        use_when="the student's confidence is to be believed and the teacher's is not; also with stored top-k logits",
        cost="one pass of the teacher over some validation rows; then as kd, with k numbers per token",
    )

    k: Annotated[int, Field(ge=1)] = 5
    recalibrate: Literal["temperature", "smoothing", "none"] = "temperature"
    c: Annotated[float, Field(gt=0)] | None = None
    fit: Literal["trust", "likelihood"] = "trust"
    bins: Annotated[int, Field(ge=1)] = 15
    samples: Annotated[int, Field(ge=1)] = 512
    delta: Annotated[float, Field(ge=0, lt=1)] = 0.1
    rest: Literal["bucket", "none"] = "bucket"
    reduction: Literal["tokens", "sequences"] = "tokens"
    parity: Literal["intended", "released"] = "intended"
    task_weight: Scalar = 0.0

    def objective(self) -> Objective:
        return Objective(Term(kl, name="first"))  # settles classes, mask and tokenizers as for any logits

    def setup(self) -> None:
        super().setup()
        shape = self.student.shapes["logits"]
        if len(shape) > 2 or shape[-1] == 1:
            raise RecipeError(
                f"first compares the most probable classes, and the student gives logits of shape {list(shape)} per sample. "
                "Needed are [classes] or, of a language model, [tokens, classes], with two classes at least."
            )
        if self.rest == "none" and self.parity == "released":
            raise RecipeError(
                "first with parity=released has a bucket for the rest, and rest is none. Leave one of them out."
            )
        if self.k == 1 and self.rest == "none":
            raise RecipeError(
                "first with k=1 and rest=none compares 1 with 1 and teaches nothing. Give k=5, or rest=bucket."
            )
        self.divisor = nn.Buffer(torch.tensor(self.c or 1.0, dtype=torch.float64))
        if self.recalibrate == "temperature" and self.c is None and self.parity == "intended":
            log_w, place = self.heard()
            found = fitted(log_w, place, by=self.fit, bins=self.bins)
            self.divisor.fill_(found)
            before, after = (calibration.gap(confidences(log_w / c, place, self.bins)) for c in (1.0, found))
            self.notices.append(
                f"first: c = {found:.3g}, fitted to what the teacher says of {len(place)} validation answers; its calibration error "
                f"there from {before:.3f} to {after:.3f}"
            )

    def transfer(self, student: Signals, teacher: Signals, batch: Batch) -> Loss:
        ours: Any = student["logits"]
        if self.terms.match is not None:
            ours = self.terms.match.of_student(ours)
        sketch, mask = self.few(teacher["logits"], batch)
        released = self.parity == "released"
        if self.recalibrate == "temperature" and not released:
            sketch = tempered(sketch, float(self.divisor))
        elif self.recalibrate == "smoothing" and not released:
            sketch = smoothed(sketch, self.delta)
        loss, tail = (among_the_known, "drop") if self.rest == "none" else (kl, "bucket")
        values = sketched.compare(
            as_released if released else loss, ours, sketch, tail=tail, mask=mask, classes=self.terms.classes
        )
        if released or self.reduction == "sequences":
            return Loss.mean("first", values.reshape(len(values), -1).sum(1))
        return Loss.mean("first", values, mask if self.terms.terms[0].mask else None)

    @torch.no_grad()
    def few(self, logits: Any, batch: Batch) -> tuple[Sketch, Bool[Tensor, "..."]]:
        """The teacher's k most probable classes and the mass of the rest, where something counts; and where that is."""
        column = self.terms.terms[0].mask
        mask = (
            counted(batch, column)
            if column
            else torch.ones(logits.shape[:-1], dtype=torch.bool, device=batch["id"].device)
        )
        if not isinstance(logits, Sketch):
            theirs = logits if self.terms.match is None else self.terms.match.of_teacher(logits)
            found = top(theirs, mask, self.k, self.terms.classes)
        else:
            found = narrowed(logits, self.k)
        if self.rest == "none":
            found = tempered(replace(found, log_tail=torch.full_like(found.log_tail, -math.inf)), 1.0)
        return found, mask

    @torch.no_grad()
    def heard(self) -> tuple[Float[Tensor, "answers buckets"], Int64[Tensor, "answers"]]:
        """What the teacher says of the validation split, log-probabilities, and in which bucket the right answer is.

        Raises:
            RecipeError: no validation split, no labels in it, or a teacher that knows nothing about it.
        """
        split = self.data.splits.get("validation")
        how = "Give it, or say what c is: first.c=1, or first.recalibrate=smoothing"
        target = self.task.target if self.task is not None else "label"
        if split is None or not len(split):
            raise RecipeError(f"first fits c on held-out data, and there is no validation split. {how}")
        chosen = torch.linspace(0, len(split) - 1, min(self.samples, len(split))).round().long().unique()
        found = []
        for ids in chosen.split(_AT_A_TIME):
            batch = on_device(self.student, split.__getitems__(ids.tolist()))
            batch.pop("view_seed", None)
            try:
                logits = self.teacher(batch, reads={"logits"})["logits"]
            except RecipeError as error:
                raise RecipeError(f"first fits c to what the teacher says of validation rows. {error} {how}") from error
            sketch, mask = self.few(logits, batch)
            labels = batch.get(target)
            if not isinstance(labels, Tensor) or labels.shape != mask.shape or labels.is_floating_point():
                raise RecipeError(
                    f"first fits c to right answers, a class for each, and column '{target}' has none. {how}"
                )
            if self.terms.match is not None:
                labels = self.terms.match.of_target(labels, self.student.shapes["logits"][-1])
            counts = mask & (labels >= 0)
            found.append(placed(sketch[counts], labels[counts]))
        width = max(log_p.shape[1] for log_p, _ in found)
        rows = [nn.functional.pad(log_p, (width - log_p.shape[1], 0), value=-math.inf) for log_p, _ in found]
        places = [place + width - log_p.shape[1] for log_p, place in found]
        return torch.cat(rows), torch.cat(places)


def placed(
    sketch: Sketch, labels: Int64[Tensor, "answers"]
) -> tuple[Float[Tensor, "answers buckets"], Int64[Tensor, "answers"]]:
    """Log-probabilities of the known classes and, last, of the rest, in double precision; in which of these each label is."""
    same = (sketch.ids == labels.unsqueeze(-1)) & sketch.known
    place = torch.where(same.any(-1), same.long().argmax(-1), sketch.ids.shape[-1])
    both = torch.cat([sketch.log_probs, sketch.log_tail.unsqueeze(-1)], -1).double()
    something = (both > -math.inf).any(-1)
    return both[something], place[something]


def confidences(
    log_w: Float[Tensor, "answers buckets"], place: Int64[Tensor, "answers"], bins: int
) -> list[calibration.Bin]:
    """How sure the teacher is of its most probable class (the rest is none), and how often it is right."""
    sure, said = log_w.log_softmax(-1)[:, :-1].max(-1)
    return calibration.binned(sure.exp(), said == place, bins=bins)


def fitted(
    log_p: Float[Tensor, "answers buckets"], place: Int64[Tensor, "answers"], *, by: str = "trust", bins: int = 15
) -> float:
    """The c of softmax(log_p / c) with the most trust, accuracy - ECE (the accuracy is the same for every c), or likelihood.

    Looked for from 1/16 to 16, on ever finer grids about the best so far; of equally good ones that nearest to 1. Right
    answers that have no probability (without a rest, those that are not known) count for trust and not for likelihood.
    """
    possible = log_p.gather(1, place.unsqueeze(1)).squeeze(1) > -math.inf

    def cost(exponent: float) -> float:
        log_w = log_p / math.exp(exponent)
        if by == "trust":
            return calibration.gap(confidences(log_w, place, bins))
        return -log_w[possible].log_softmax(-1).gather(1, place[possible].unsqueeze(1)).mean().item()

    if not len(place) or (by == "likelihood" and not possible.any()):
        return 1.0
    low, high, best = -math.log(16), math.log(16), 0.0
    for _ in range(3):
        grid = torch.linspace(low, high, 65, dtype=torch.float64).tolist()
        best = min(grid, key=lambda e: (round(cost(e), 12), abs(e)))
        step = (high - low) / 64
        low, high = max(best - step, -math.log(16)), min(best + step, math.log(16))
    return math.exp(best)
