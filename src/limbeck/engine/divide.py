"""The one division: from a loss function and a batch to gradients that do not depend on how the batch was cut.

Every part of a loss is a sum and a count. A gradient of sum / count needs the count of the whole batch, over pieces
and processes, before it is taken (or a correction after it). Four cases, cheapest first:

1. one piece: counts are summed over processes between the forward and the backward pass;
2. counts that can be read off the batch (no mask, or a mask that is a column): summed before the first piece;
3. a single part: gradients of its sum, divided by a fixed number, and corrected once at the end;
4. otherwise two passes, the first without a graph, the random state replayed. This serves batch-scope parts too:
   their tensors are gathered in the first pass, and their gradients enter the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.engine import gradients, random_state
from limbeck.engine.pieces import in_step, rows
from limbeck.engine.processes import World
from limbeck.objectives import BatchPart, Loss, Part, at_least_one

LossFunction = Callable[[dict[str, Any]], Loss]


@dataclass
class Taken:
    """What the backward passes left besides gradients: global means and weights of the parts, records, gradients per part."""

    values: dict[str, Tensor]
    weights: dict[str, float]
    record: dict[str, Tensor]
    per_part: dict[str, list[Tensor | None]] = field(default_factory=dict)


class NotOneKindError(RuntimeError):
    """A loss function made different parts for different pieces of one batch."""


class Divider:
    """Runs loss functions on pieces and leaves the whole batch's gradient in the trainee's parameters."""

    def __init__(self, world: World, autocast: Callable[[], AbstractContextManager[Any]]):
        self.world, self.autocast = world, autocast
        self._two_passes: set[Any] = set()

    @torch.enable_grad()
    def __call__(
        self,
        function: LossFunction,
        batch: Mapping[str, Any],
        parameters: Sequence[nn.Parameter],
        *,
        pieces: int = 1,
        scale: float | Tensor = 1.0,
        per_part: bool = False,
        whole: bool = False,
    ) -> Taken:
        """Accumulate d(scale * loss)/d(parameters) into `.grad`, summed over pieces but not yet over processes.

        Args:
            function: from a (piece of a) batch to its Loss.
            batch: this process's samples of the step.
            parameters: those that learn.
            pieces: how many runs of rows the batch is cut into.
            scale: a gradient scaler's factor.
            per_part: also give every part's own gradient (unscaled), for combining or measuring them.
            whole: the loss is not a sum over samples; it is called once.
        """
        run = _Run(self, function, batch, parameters, scale, per_part)
        most = 1 if whole or pieces == 1 else self.world.most(rows(batch))
        if min(pieces, most) <= 1:
            return run.one_piece(dict(batch))
        parts = in_step(batch, min(pieces, most))
        key = (*_kind(function), frozenset(batch))  # with another column it may be another loss
        if key in self._two_passes:
            return run.two_passes(parts)
        before = random_state.capture(self.world.device)
        first = run.call(parts[0])
        counts = run.counts_from_batch(first, parts[0])
        if counts is None and len(first.parts) == 1 and not run.has_batch_parts(first) and not per_part:
            return run.single_part(parts, first, most * self.world.size)
        taken = run.known_counts(parts, first, counts) if counts is not None else None
        if taken is not None:
            return taken
        del first
        for p in parameters:
            p.grad = None
        self._two_passes.add(key)
        random_state.restore(before, self.world.device)
        return _Run(self, function, batch, parameters, scale, per_part).two_passes(parts)


def _kind(function: Any) -> tuple[Any, type]:
    """What tells two loss functions apart; a lambda that is made anew in every step is the same one."""
    while isinstance(function, partial):
        function = function.func
    plain = getattr(function, "__func__", function)
    return getattr(plain, "__code__", type(plain)), type(getattr(function, "__self__", None))


def _silenced(loss: Loss) -> Loss:
    """The loss of a ghost, which only keeps its process in step: the same graph, nothing counted, every gradient zero."""
    parts = {
        name: replace(part, tensors={k: t[:0] for k, t in part.tensors.items()})
        if isinstance(part, BatchPart)
        else replace(part, sum=part.sum * 0, count=part.count * 0)
        for name, part in loss.parts.items()
    }
    return Loss(parts, {name: kept[:0] for name, kept in loss.record.items()})


class _Run:
    """One update's passes."""

    def __init__(
        self,
        divider: Divider,
        function: LossFunction,
        batch: Mapping[str, Any],
        parameters: Sequence[nn.Parameter],
        scale: float | Tensor,
        per_part: bool,
    ):
        self.world, self.autocast = divider.world, divider.autocast
        self.function, self.batch, self.scale = function, batch, scale
        self.parameters = list(parameters)
        self.wide = gradients.WideSum(parameters)
        self.records: list[dict[str, Tensor]] = []
        self.begun: set[str] = set()
        self.inside = False  # whether a batch-scope function holds parameters that learn
        self.per_part: dict[str, list[Tensor | None]] | None = {} if per_part else None

    def call(self, piece: dict[str, Any]) -> Loss:
        with self.autocast():
            loss = self._checked(self.function(piece))
        return _silenced(loss) if piece.get("ghost") else loss

    def _checked(self, loss: Any) -> Loss:
        if not isinstance(loss, Loss):
            raise TypeError(f"a loss function gives a Loss (Loss.mean(name, values)), not a {type(loss).__name__}.")
        if not loss.parts:
            raise ValueError("a loss function gave a loss without parts, so there is nothing to learn from.")
        return loss

    @staticmethod
    def has_batch_parts(loss: Loss) -> bool:
        return any(isinstance(part, BatchPart) for part in loss.parts.values())

    def counts_from_batch(self, loss: Loss, piece: Mapping[str, Any]) -> Tensor | None:
        """Global counts of all parts if the batch alone tells them on every process, else None."""
        size, total, ghost = rows(piece), rows(self.batch), bool(self.batch.get("ghost"))
        counts: list[float | None] = []
        for part in loss.parts.values():
            column = next((k for k, v in piece.items() if v is part.mask), None) if isinstance(part, Part) else None
            if isinstance(part, BatchPart) or (part.mask is not None and column is None):
                counts.append(None)
            elif column is not None:
                counts.append(float(self.batch[column].sum(dtype=torch.float64)) * (not ghost))
            elif part.per_sample is not None and (ghost or part.count == part.per_sample * size):
                counts.append(float(part.per_sample * total) * (not ghost))
            else:
                counts.append(None)
        unknown = float(None in counts)
        told = self.world.sum_(
            torch.tensor([*(c or 0.0 for c in counts), unknown], dtype=torch.float64, device=self.world.device)
        )
        return None if (unknown if self.world.size == 1 else float(told[-1])) else told[:-1]

    def one_piece(self, piece: dict[str, Any]) -> Taken:
        loss = self.call(piece)
        self._keep(loss)
        if self.world.size == 1:
            means = {
                name: part.value(part.tensors) if isinstance(part, BatchPart) else part.sum / at_least_one(part.count)
                for name, part in loss.parts.items()
            }
            self._backward({name: _times(loss.parts[name].weight, mean) for name, mean in means.items()})
            return self._taken(loss, {name: mean.detach() for name, mean in means.items()})
        names = list(loss.parts)
        both = self.world.sum_(torch.stack([self._sums(loss), self._counts(loss)]))
        means = {name: both[0, i] / at_least_one(both[1, i]) for i, name in enumerate(names)}
        joint = {
            name: self._joint(name, part, part.tensors)
            for name, part in loss.parts.items()
            if isinstance(part, BatchPart)
        }
        self._backward(self._weighted(loss, dict(zip(names, both[1])), joint, dict.fromkeys(joint, 0)))
        return self._taken(loss, means | {name: value for name, (value, _, _) in joint.items()})

    def known_counts(self, parts: list[dict[str, Any]], first: Loss, counts: Tensor) -> Taken | None:
        """None: a later piece counted otherwise than the first (say, only those values that some condition picked)."""
        divisor = dict(zip(first.parts, counts))
        sums, counted = torch.zeros_like(counts), torch.zeros_like(counts)
        loss = first
        for i, piece in enumerate(parts):
            loss = first if i == 0 else self.call(piece)
            self._same(first, loss)
            sums += self._sums(loss)
            counted += self._counts(loss)
            self._keep(loss)
            self._backward(self._weighted(loss, divisor, {}, {}))
            self.wide.take()
            first = Loss({name: _bare(part) for name, part in first.parts.items()})  # its graph is free again
        self.wide.give()
        both = self.world.sum_(torch.stack([sums, counted]))
        if not torch.allclose(both[1], counts, rtol=1e-5):
            return None
        means = both[0] / at_least_one(counts)
        return self._taken(loss, dict(zip(first.parts, means)))

    def single_part(self, parts: list[dict[str, Any]], first: Loss, fixed: float) -> Taken:
        """`fixed` divides until the count is known; the same on every process."""
        name = next(iter(first.parts))
        total = torch.zeros(2, dtype=torch.float64, device=self.world.device)
        loss = first
        for i, piece in enumerate(parts):
            loss = first if i == 0 else self.call(piece)
            self._same(first, loss)
            part = loss.parts[name]
            total += torch.stack([self._sum(part), self._count(part)])
            self._keep(loss)
            self._backward(self._weighted(loss, {name: torch.tensor(fixed)}, {}, {}))
            self.wide.take()
            first = Loss({name: _bare(part)})
        self.wide.give()
        self.world.sum_(total)
        gradients.scale_(self.parameters, fixed / float(at_least_one(total[1])))
        return self._taken(loss, {name: total[0] / at_least_one(total[1])})

    def two_passes(self, parts: list[dict[str, Any]]) -> Taken:
        states, seen = [], []
        with torch.no_grad():
            for piece in parts:
                states.append(random_state.capture(self.world.device))
                seen.append(self.call(piece))
                self._same(seen[0], seen[-1])
        after = random_state.capture(self.world.device)
        names = list(seen[0].parts)
        counts = self.world.sum_(
            sum(
                (self._counts(loss) for loss in seen),
                start=torch.zeros(len(names), dtype=torch.float64, device=self.world.device),
            )
        )
        sums = self.world.sum_(sum((self._sums(loss) for loss in seen), start=torch.zeros_like(counts)))
        joint = {}
        for name, part in seen[0].parts.items():
            if isinstance(part, BatchPart):
                joined = {k: torch.cat([loss.parts[name].tensors[k] for loss in seen]) for k in part.tensors}  # type: ignore[union-attr]
                joint[name] = self._joint(name, part, joined)
        offsets = dict.fromkeys(joint, 0)
        divisor = dict(zip(names, counts))
        loss = seen[0]
        for piece, state in zip(parts, states):
            random_state.restore(state, self.world.device)
            loss = self.call(piece)
            self._keep(loss)
            self._backward(self._weighted(loss, divisor, joint, offsets))
            self.wide.take()
        self.wide.give()
        random_state.restore(after, self.world.device)
        means = dict(zip(names, sums / at_least_one(counts)))
        return self._taken(loss, means | {name: value for name, (value, _, _) in joint.items()})

    def _joint(
        self, name: str, part: BatchPart, tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        """A batch-scope part on the tensors of all processes: its value, its gradient at each tensor, and our first row.

        Parameters that the function itself holds (a learnt temperature) get their gradient here, on the main process
        only, because every process computes the same whole.
        """
        leaves, start = {}, 0
        for key, tensor in tensors.items():
            gathered, start = self.world.gather_rows(tensor.detach())
            leaves[key] = gathered.requires_grad_() if gathered.is_floating_point() else gathered
        with self.autocast():
            value = part.value(leaves)
        if not value.requires_grad:
            return value, {}, start
        learning = [leaf for leaf in leaves.values() if leaf.requires_grad]
        weight = _number(part.weight)
        own = [p for p in self.parameters if p.requires_grad]
        found = torch.autograd.grad(value * self.scale, [*learning, *own], allow_unused=True)
        self.inside |= any(g is not None for g in found[len(learning) :])
        if self.world.main:
            inner = [g if g is None else weight * g for g in found[len(learning) :]]
            for p, grad in zip(own, inner):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad + grad
            if self.per_part is not None:
                self.per_part[name] = [g if g is None else g / self.scale for g in inner]
        by_leaf = dict(zip((id(leaf) for leaf in learning), found))
        return value.detach(), {n: by_leaf[id(t)] for n, t in leaves.items() if by_leaf.get(id(t)) is not None}, start

    def _weighted(
        self,
        loss: Loss,
        divisor: Mapping[str, Tensor],
        joint: Mapping[str, tuple[Tensor, dict[str, Tensor], int]],
        offsets: dict[str, int],
    ) -> dict[str, Tensor]:
        """Each part's contribution of this piece to the whole batch's loss, with the right gradient."""
        out = {}
        for name, part in loss.parts.items():
            if isinstance(part, Part):
                out[name] = part.weight * (part.sum / at_least_one(divisor[name].to(part.sum.dtype)))
                continue
            value, grads, start = joint[name]
            low, first = start + offsets[name], name not in self.begun
            size = len(next(iter(part.tensors.values())))
            offsets[name] += size
            self.begun.add(name)
            inner = [(part.tensors[k] * g[low : low + size].to(part.tensors[k].dtype)).sum() for k, g in grads.items()]
            weight = part.weight.detach() if isinstance(part.weight, Tensor) else part.weight
            nothing = sum((t * 0).sum() for t in part.tensors.values() if t.requires_grad)
            nothing = nothing + torch.zeros((), device=self.world.device)
            out[name] = weight * sum(inner, start=nothing) / self.scale  # the gradients carry the scale already
            if isinstance(part.weight, Tensor) and part.weight.requires_grad and self.world.main and first:
                out[name] = out[name] + part.weight * value
        return out

    def _backward(self, weighted: dict[str, Tensor]) -> None:
        if self.per_part is not None:
            learning = [p for p in self.parameters if p.requires_grad]
            for name, value in weighted.items():
                if not value.requires_grad:
                    continue
                found = torch.autograd.grad(value, learning, retain_graph=True, allow_unused=True)
                old = self.per_part.get(name, [None] * len(found))
                self.per_part[name] = [g if o is None else o if g is None else o + g for o, g in zip(old, found)]
        total: Any = reduce(add, weighted.values())
        if not total.requires_grad and self.inside:
            return
        if not total.requires_grad:
            raise RuntimeError(
                f"the loss ({', '.join(weighted)}) does not depend on any parameter of the trainee; was a signal detached, or a graph not kept "
                "(a teacher that must let gradients through has teacher_mode='through' on the method's card)?"
            )
        _times(self.scale, total).backward()

    def _same(self, first: Loss, loss: Loss) -> None:
        if first.parts.keys() != loss.parts.keys():
            raise NotOneKindError(
                f"one piece of the batch gave the parts {', '.join(first.parts)}, another {', '.join(loss.parts)}. A part may not come and go "
                "with the samples: give Loss.mean a mask instead."
            )

    def _keep(self, loss: Loss) -> None:
        if loss.record:
            self.records.append({name: value.detach() for name, value in loss.record.items()})

    def _sum(self, part: Part | BatchPart) -> Tensor:
        if isinstance(part, BatchPart):
            return torch.zeros((), dtype=torch.float64, device=self.world.device)
        return part.sum.detach().to(torch.float64)

    def _count(self, part: Part | BatchPart) -> Tensor:
        if isinstance(part, BatchPart):
            return torch.zeros((), dtype=torch.float64, device=self.world.device)
        return torch.as_tensor(part.count, dtype=torch.float64, device=self.world.device).detach()

    def _sums(self, loss: Loss) -> Tensor:
        return torch.stack([self._sum(part) for part in loss.parts.values()])

    def _counts(self, loss: Loss) -> Tensor:
        return torch.stack([self._count(part) for part in loss.parts.values()])

    def _taken(self, loss: Loss, values: dict[str, Tensor]) -> Taken:
        names = list(dict.fromkeys(name for record in self.records for name in record))
        record = {}
        for name in names:
            record[name] = self.world.gather_rows(torch.cat([r[name] for r in self.records]))[0]
        weights = {name: _number(part.weight) for name, part in loss.parts.items()}
        return Taken(values, weights, record, self.per_part or {})


def _bare(part: Part | BatchPart) -> Part | BatchPart:
    return Part(part.sum.detach(), part.count, mask=part.mask) if isinstance(part, Part) else part


def _times(factor: float | Tensor, value: Tensor) -> Tensor:
    """The product; one is spared its two operations."""
    return value if isinstance(factor, float) and factor == 1.0 else factor * value


def _number(weight: float | Tensor) -> float:
    return float(weight.detach()) if isinstance(weight, Tensor) else float(weight)
