"""Loss, Term and Objective: sums with their counts, so that one division at the end is the same however a batch was cut."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck import bridges, labels, losses
from limbeck.actors import Student, Teacher
from limbeck.errors import RecipeError, nearest
from limbeck.losses import linear, sketched
from limbeck.losses.masking import aligned
from limbeck.schedules import Schedule, to_schedule
from limbeck.signals import Projection, Signals
from limbeck.sketches import Sketch

Number = float | Tensor


@dataclass
class Part:
    """A sum over samples (or tokens) and how many it is over.

    `mask` is kept so that the engine can see that it is an entry of the batch and count it beforehand; `per_sample`
    is the number of values of one sample where nothing was masked, and None where that is not known.
    """

    sum: Float[Tensor, ""]
    count: Number
    weight: Number = 1.0
    mask: Tensor | None = None
    per_sample: int | None = None


@dataclass
class BatchPart:
    """A loss over a whole batch: `function(**tensors)` gives one value per sample or one number, never to be cut."""

    function: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    weight: Number = 1.0

    def value(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The mean of the function's values over the given (gathered) tensors, summed in fp32 or better; of no values 0."""
        values = self.function(**tensors)
        wide = values if values.dtype == torch.float64 else values.float()
        return wide.mean() if wide.numel() else wide.sum()


@dataclass
class Loss:
    """A weighted sum of parts. `mean` and `batch` make one part each; `+` and `0.9 *` build the rest.

    `record` keeps values per sample (detached); they come back in `Outcome.record`, joined over pieces and processes.
    """

    parts: dict[str, Part | BatchPart] = field(default_factory=dict)
    record: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def mean(
        cls,
        name: str,
        values: Float[Tensor, "batch ..."],
        mask: Bool[Tensor, "batch ..."] | Float[Tensor, "batch ..."] | None = None,
    ) -> Loss:
        """The mean of `values` (one per sample, token or pixel), over those that `mask` counts.

        A float mask weighs: sum(mask * values) / sum(mask). Masked-out values do not matter, not even when they are
        nan. Sums are taken in fp32 (fp64 stays).

        Raises:
            ValueError: `values` is one number: then it is not known how many samples it stands for.
        """
        if values.dim() == 0:
            raise ValueError(one_number(name))
        wide = values if values.dtype == torch.float64 else values.float()
        if mask is None:
            return cls({name: Part(wide.sum(), float(wide.numel()), per_sample=wide[0].numel() if len(wide) else None)})
        if mask.shape != values.shape:
            raise ValueError(
                f"{name}: the mask has shape {list(mask.shape)}, the values {list(values.shape)}; they must be equal."
            )
        counted = torch.where(mask != 0, wide, torch.zeros_like(wide))
        if mask.dtype != torch.bool:
            counted = counted * mask
        return cls({name: Part(counted.sum(), mask.sum(dtype=wide.dtype), mask=mask)})

    @classmethod
    def batch(cls, name: str, function: Callable[..., Tensor], **tensors: Tensor) -> Loss:
        """A loss that needs the whole batch at once (contrastive, Sinkhorn, quantiles, balance of a gate).

        `function(**tensors)` is called on the tensors of all samples of the step, over pieces and processes; the
        first dimension of each tensor is the samples. It gives one value per sample, or one number.
        """
        return cls({name: BatchPart(function, tensors)})

    def __add__(self, other: Loss | int) -> Loss:
        if isinstance(other, int):  # so that sum(losses) works
            return self
        same = self.parts.keys() & other.parts.keys()
        if same:
            raise ValueError(
                f"two parts of a loss are both called {', '.join(sorted(same))}; give each term its own name."
            )
        return Loss({**self.parts, **other.parts}, {**self.record, **other.record})

    __radd__ = __add__

    def __mul__(self, factor: Number) -> Loss:
        if isinstance(factor, (int, float)) and factor == 1:
            return self
        return Loss({n: replace(p, weight=p.weight * factor) for n, p in self.parts.items()}, self.record)

    __rmul__ = __mul__

    def total(self) -> Float[Tensor, ""]:
        """The number itself, for one uncut batch: sum of weight * sum / count (a part that counts nothing is 0)."""
        if not self.parts:
            raise ValueError("a loss without parts: give it Loss.mean(name, values).")
        return sum(self.values_weighted())  # type: ignore[return-value]

    def values_weighted(self) -> list[Tensor]:
        """Weight times mean of every part, in order."""
        means = [
            p.value(p.tensors) if isinstance(p, BatchPart) else p.sum / at_least_one(p.count)
            for p in self.parts.values()
        ]
        return [p.weight * m for p, m in zip(self.parts.values(), means)]


def at_least_one(count: Number) -> Number:
    """The divisor for a count: an empty sum is divided by one and stays zero."""
    if isinstance(count, Tensor):
        return torch.where(count == 0, torch.ones_like(count), count)
    return count or 1.0


def one_number(name: str) -> str:
    """The sentence for a loss that was reduced too early."""
    return (
        f"{name} returned one number; a loss returns one value per sample (or token), so that any re-weighting can act on it. "
        'Or say scope="batch"'
    )


class Term:
    """One comparison: a loss function, the signals it reads, a mask, a bridge, a weight.

    Args:
        loss: a function `(student, teacher, **options) -> one value per sample or token`, its name in
            `limbeck.losses`, or `module:function`. Parameters called `target` and `progress` are given the labels and
            the progress.
        reads: the signal's name on both sides, or `(student's, teacher's)`.
        weight: a number or a schedule.
        mask: a batch column of what counts: bool, or labels, of which those below zero do not count; of the shape of
            the values, or of their first dimensions.
        bridge: `auto` (a bridge where shapes differ; never for logits), `none`, a name from `limbeck.bridges`, or a module.
        scope: `sample` and `token` values are summed and divided by the global count; `batch` calls the function once
            on the whole batch, over pieces and processes.
        name: what the log calls it.
        options: passed to the function. A `dim` that is not given is 1 for maps [batch, channels, height, width] and -1
            for everything else.
    """

    def __init__(
        self,
        loss: str | Callable[..., Tensor],
        reads: str | tuple[str, str] = "logits",
        *,
        weight: float | Schedule = 1.0,
        mask: str | None = None,
        bridge: str | nn.Module = "auto",
        scope: str = "sample",
        name: str | None = None,
        **options: Any,
    ):
        if scope not in ("sample", "token", "batch"):
            raise RecipeError(f"scope '{scope}' of a term is not known. {nearest(scope, ['sample', 'token', 'batch'])}")
        self.function = losses.find(loss) if isinstance(loss, str) else loss
        self.student_reads, self.teacher_reads = (reads, reads) if isinstance(reads, str) else reads
        self.weight = to_schedule(weight)
        self.mask, self.bridge, self.scope = mask, bridge, scope
        self.name: str = name or str(getattr(self.function, "__name__", type(self.function).__name__))
        self.options = options
        self.around: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None  # who watches its calls
        takes = inspect.signature(self.function).parameters
        self.wants_target, self.wants_progress = "target" in takes, "progress" in takes
        self.takes_mask = "mask" in takes and scope != "batch"
        self.takes_dim = "dim" in takes and "dim" not in options
        unknown = [o for o in options if o not in takes and not any(p.kind == p.VAR_KEYWORD for p in takes.values())]
        if unknown:
            raise RecipeError(
                f"unknown key '{unknown[0]}' of {self.name}. {nearest(unknown[0], [t for t in takes if t not in ('student', 'teacher')])}"
            )

    def call(self, form: Callable[..., Tensor] | None = None) -> Callable[..., Tensor]:
        """What is called: the loss function, or a form of it that reads signals as they are."""
        return (form or self.function) if self.around is None else self.around(form or self.function)


class Objective(nn.Module):
    """A weighted sum of terms, with the bridges that they need. Owns no optimiser."""

    def __init__(self, *terms: Term):
        super().__init__()
        self.terms = list(terms)
        self.bridges = nn.ModuleDict()
        self.target = "label"
        self.match: labels.LabelMatch | None = None
        self.classes: int | None = None  # where both heads are padded, and not to the same length
        names = [term.name for term in terms]
        for i, term in enumerate(terms):
            if names.count(term.name) > 1:
                term.name = (
                    f"{term.name}.{term.student_reads}" if term.student_reads != "logits" else f"{term.name}.{i}"
                )

    @property
    def student_reads(self) -> set[str]:
        """Names of the student's signals that the terms read."""
        return {term.student_reads for term in self.terms}

    @property
    def teacher_reads(self) -> set[str]:
        """Names of the teacher's signals that the terms read."""
        return {term.teacher_reads for term in self.terms}

    def settle(self, student: Student, teacher: Teacher | None, target: str = "label") -> list[str]:
        """Check every term against the probed shapes and build bridges; gives sentences about what was chosen.

        Raises:
            RecipeError: a signal that is not there, classes that differ, shapes that no bridge joins.
        """
        self.target = target
        said = []
        if self.terms and teacher is None:
            raise RecipeError(
                f"{self.terms[0].name} compares student and teacher, and there is no teacher. Give teacher=..."
            )
        for term in self.terms:
            assert teacher is not None
            for actor, name in ((student, term.student_reads), (teacher, term.teacher_reads)):
                if name not in actor.shapes:
                    raise RecipeError(f"{term.name} reads '{name}': {actor.lacks(name)}")
            if teacher.sketches and term.teacher_reads == "logits":
                _refuse_whole(term)
            ours, theirs = student.shapes[term.student_reads], teacher.shapes[term.teacher_reads]
            if term.student_reads == term.teacher_reads == "logits" and isinstance(term.bridge, str):
                self._match_logits(student, teacher, ours, theirs)
            elif isinstance(term.bridge, nn.Module):
                self.bridges[_key(term)] = term.bridge
            else:
                bridge = bridges.find(term.bridge, ours, theirs)
                if not isinstance(bridge, bridges.Identity):
                    self.bridges[_key(term)] = bridge
                    if term.bridge == "auto":
                        said.append(f"{term.name}: " + bridges.describe(bridge, ours, theirs))
        return said

    def _match_logits(self, student: Student, teacher: Teacher, ours: tuple[int, ...], theirs: tuple[int, ...]) -> None:
        if student.labels and teacher.labels:
            for actor, shape in ((student, ours), (teacher, theirs)):
                width = _classes(shape)
                if len(actor.labels or ()) != width:
                    raise RecipeError(
                        f"{actor.whose}.labels names {len(actor.labels or ())} classes, its logits have {width}."
                    )
            self.match = labels.match(student.labels, teacher.labels, teacher.label_map)
        elif len(ours) == len(theirs) == 2:  # tokens
            self.classes = _shared_classes(student, teacher, ours[-1], theirs[-1])
        elif _classes(ours) != _classes(theirs):
            raise RecipeError(
                f"student logits have {_classes(ours)} classes, teacher logits {_classes(theirs)}. Give both their names (teacher.labels, "
                f"student.labels) and they are matched by name, or student.args.classes={_classes(theirs)}"
            )

    def forward(self, student: Signals, teacher: Signals, batch: Mapping[str, Any], progress: Any) -> Loss:
        """The loss of one batch (or of a piece of it)."""
        loss = Loss()
        for term in self.terms:
            ours, theirs = student[term.student_reads], teacher[term.teacher_reads]
            if (fused := self._fused(term, ours, theirs)) is not None:
                loss = loss + term.weight(progress) * self._compare(term, ours, theirs, batch, progress, fused)
                continue
            ours, theirs = (s.materialise() if isinstance(s, Projection) else s for s in (ours, theirs))
            own = batch
            if self.match is not None and term.student_reads == term.teacher_reads == "logits":
                dim = 1 if ours.dim() == 4 else -1
                if term.wants_target:
                    own = {**batch, self.target: self.match.of_target(batch[self.target], ours.shape[dim])}
                ours, theirs = self.match.of_student(ours, dim), self.match.of_teacher(theirs, dim)
            if self.classes is not None and term.student_reads == term.teacher_reads == "logits":
                ours, theirs = ours[..., : self.classes], theirs[..., : self.classes]
            if _key(term) in self.bridges:
                ours = self.bridges[_key(term)](ours)
            loss = loss + term.weight(progress) * self._compare(term, ours, theirs, own, progress)
        return loss

    def _fused(self, term: Term, ours: Any, theirs: Any) -> Callable[..., Tensor] | None:
        """The form of a term's loss that reads hidden states and heads, where nothing stands between it and both.

        A teacher that learns as well needs its own gradient, which that form does not give. What a sketch knows is
        compared by a form of its own.
        """
        if isinstance(theirs, Sketch):
            _refuse_whole(term)
            return sketched.matching(term.function)
        if not (isinstance(ours, Projection) and isinstance(theirs, Projection)) or term.scope == "batch":
            return None
        if self.match is not None or _key(term) in self.bridges or term.options.get("dim", -1) != -1:
            return None
        if torch.is_grad_enabled() and theirs.hidden.requires_grad:
            return None
        return linear.fused(term.function)

    def _compare(
        self,
        term: Term,
        ours: Any,
        theirs: Any,
        batch: Mapping[str, Any],
        progress: Any,
        fused: Callable[..., Tensor] | None = None,
    ) -> Loss:
        options = dict(term.options)
        if fused is not None:
            options.pop("dim", None)
            options |= {"classes": self.classes} if self.classes is not None else {}
        elif term.takes_dim and ours.dim() == 4:
            options["dim"] = 1
        if term.wants_progress:
            options["progress"] = progress
        if term.scope == "batch":
            tensors = {"student": ours, "teacher": theirs}
            if term.wants_target:
                tensors["target"] = batch[self.target]
            if term.mask:
                tensors["mask"] = counted(batch, term.mask)
            call = term.call()
            return Loss.batch(
                term.name, lambda student, teacher, **more: call(student, teacher, **more, **options), **tensors
            )
        if term.wants_target:
            options["target"] = batch[self.target]
        mask = counted(batch, term.mask) if term.mask else None
        if term.takes_mask and mask is not None:
            options["mask"] = mask
        values = term.call(fused)(ours, theirs, **options)
        if values.dim() == 0:
            raise RecipeError(one_number(term.name))
        if (
            mask is not None and mask.shape != values.shape
        ):  # of the samples of values per token, or of tokens of values per sample
            fits = mask.dim() < values.dim()
            mask = aligned(mask, values.shape, "mask").expand_as(values) if fits else None
        return Loss.mean(term.name, values, mask)


def _refuse_whole(term: Term) -> None:
    """A loss that needs every class cannot be had of a teacher who tells some.

    Raises:
        RecipeError: with the losses that can.
    """
    if sketched.matching(term.function) is None or term.scope == "batch":
        able = ", ".join(name for name, loss in losses.known().items() if sketched.matching(loss) is not None)
        raise RecipeError(
            f"{term.name} compares whole distributions, and of this teacher some classes and the mass of the rest are known "
            f"(stored, or from an endpoint). These can do with that: {able}; or take the teacher itself"
        )


def _shared_classes(student: Student, teacher: Teacher, ours: int, theirs: int) -> int | None:
    """How many tokens both heads know, where one is padded; tokens are compared at their places, so both must split text alike.

    Raises:
        RecipeError: they do not; with both sizes, what is shared, and the methods that cross tokenizers.
    """
    mine, other = student.tokenizer, teacher.tokenizer
    if mine is None or other is None or mine.same_as(other):
        if ours == theirs:
            return None
        known = mine.size if mine is not None and other is not None else None
        return linear.shared_classes(ours, theirs, classes=known)
    from limbeck.methods import all_methods

    crossing = ", ".join(name for name, method in all_methods().items() if method.card.across_tokenizers)
    raise RecipeError(
        f"{other.difference(mine)}. This method compares token by token. Methods that cross tokenizers: {crossing}"
    )


def _classes(shape: tuple[int, ...]) -> int:
    """How many classes logits of this shape (of one sample) have: the channels of a map, else the last dimension."""
    return shape[0] if len(shape) == 3 else shape[-1]


def counted(batch: Mapping[str, Any], column: str) -> Bool[Tensor, "batch ..."]:
    """What counts, as a column says it: a bool column itself, labels where they are not below zero.

    Raises:
        RecipeError: there is no such column.
    """
    if column not in batch:
        raise RecipeError(f"a mask is to be read from the column '{column}'. {nearest(column, map(str, batch))}")
    found: Tensor = batch[column]
    return found if found.dtype == torch.bool else found >= 0


def _key(term: Term) -> str:
    return term.name.replace(".", "_")  # a module's name may not hold a dot
