"""From an update to its outcome: who learns, the division, the sum over processes, the clip, the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.actors import Actor, Teacher
from limbeck.engine import gradients, optimisers, random_state
from limbeck.engine.divide import Divider, Taken
from limbeck.engine.pieces import cut, find_pieces, kept_bytes, rows
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.errors import RecipeError, nearest
from limbeck.method import Method, Outcome, Progress, Update


class NonFiniteError(RuntimeError):
    """A loss or a gradient became nan or infinite; the update was not made."""

    def __init__(self, what: str, step: int, ids: list[int], saved: str = ""):
        self.what, self.step, self.ids = what, step, ids
        shown = ", ".join(map(str, ids[:16])) + (" ..." if len(ids) > 16 else "")
        super().__init__(f"step {step}: {what} is not finite. Samples of the batch (row numbers): {shown}.{saved}")


class Trainee:
    """A named group of parameters with an optimiser and a gradient scaler of its own."""

    def __init__(
        self, name: str, members: list[nn.Module | nn.Parameter], settings: TrainSettings, scaled: str | None = None
    ):
        self.name, self.settings = name, settings
        self.modules = [m for m in members if isinstance(m, nn.Module)]
        found = [p for m in members for p in ([m] if isinstance(m, nn.Parameter) else m.parameters())]
        self.parameters = [p for p in dict.fromkeys(found) if p.requires_grad]
        if not self.parameters:
            raise RecipeError(
                f"the trainee '{name}' has no parameter that learns. Are all of them frozen (requires_grad=False)?"
            )
        self.optimizer = optimisers.build(self.parameters, settings, scaled=scaled is not None)
        self.scaler = torch.amp.GradScaler(scaled) if scaled else None
        self.skipped = 0


class Stepper:
    """Performs the updates of one stage.

    Args:
        method: bound and set up.
        settings: the stage's `train` settings.
        world: this process among its peers.
        pieces: into how many pieces an update's batch is cut; 0: found on the first step.
        limit: bytes that one piece may keep for its backward pass (with pieces=0).
    """

    def __init__(
        self, method: Method, settings: TrainSettings, world: World, *, pieces: int = 1, limit: int | None = None
    ):
        self.method, self.settings, self.world, self.limit = method, settings, world, limit
        self.pieces = pieces
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}
        precision = settings.precision
        if precision == "auto":
            precision = "bf16" if world.device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        self.precision = precision
        self._half = half.get(precision)
        self.trainees: dict[str, Trainee] = {}
        self.teachers: list[Teacher] = list(method.teacher.members.values()) if method.teacher is not None else []
        self._own_requires_grad = [(p, p.requires_grad) for p in self._everything()]
        for name, members in method.trainees().items():
            self._check_members(name, members)
            self.trainees[name] = self._make(name, members)
        for name in settings.trainees:
            if name not in self.trainees:
                raise RecipeError(
                    f"train.trainees names '{name}', which this method does not train. {nearest(name, self.trainees)}"
                )
        self._active: str | None = None
        self.divide = Divider(world, self.autocast)
        self._set_modes()

    def perform(
        self, update: Update, progress: Progress, *, measure: bool = False
    ) -> tuple[Outcome, dict[str, dict[str, float]], bool]:
        """Make one optimiser step. Gives the outcome, a log entry per part, and whether the step was made.

        Raises:
            NonFiniteError: with `on_nonfinite: stop`; nothing was changed.
        """
        trainee = self._trainee(update)
        measure = measure and not any(gradients.sharded(p) for p in trainee.parameters)
        self._activate(trainee)
        try:
            pieces = self._pieces_for(update, trainee)
            trainee.optimizer.zero_grad(set_to_none=True)
            scale: Any = trainee.scaler.scale(torch.ones((), device=self.world.device)) if trainee.scaler else 1.0
            taken = self.divide(
                update.loss,
                update.batch,
                trainee.parameters,
                pieces=pieces,
                scale=scale,
                per_part=measure or update.combine is not None,
                whole=update.whole,
            )
        finally:
            for teacher in self.teachers:
                teacher.learning = False
        gradients.reduce_(trainee.parameters, self.world)
        if trainee.scaler is not None:
            trainee.scaler.unscale_(trainee.optimizer)
        parts = self._gradient_of_parts(taken, trainee)
        if update.combine is not None:
            self._combine(update, [vector for vector in parts.values() if vector.any()], trainee)
        norm = gradients.norm(trainee.parameters, self.world)
        told = [*(v.detach() for v in taken.values.values()), norm]
        wide = any(v.dtype == torch.float64 for v in told)
        numbers = torch.stack([v.double() for v in told] if wide else told).tolist()
        values, grad_norm = dict(zip(taken.values, numbers)), numbers[-1]
        made = self._step(trainee, update, progress, values, grad_norm)
        terms = _terms(values, taken, parts if measure else {})
        return Outcome(values, grad_norm, taken.record), terms, made

    def rebuild(self, name: str) -> None:
        """Make a trainee anew after an operation on its modules: parameters as they are now, a fresh optimiser."""
        for actor in (self.method.student, *self.teachers):
            actor.listen_again()
        members = self.method.trainees()[name]
        known = {id(p) for p, _ in self._own_requires_grad}
        for p, own in self._own_requires_grad:
            p.requires_grad_(own)
        self._own_requires_grad += [(p, p.requires_grad) for p in self._everything() if id(p) not in known]
        self.trainees[name] = self._make(name, members)
        self._active = None
        self._set_modes()

    def release(self) -> None:
        """At the end of the stage: give `requires_grad` back as it was found, and put everything into eval mode."""
        for p, own in self._own_requires_grad:
            p.requires_grad_(own)
        for module in self.modules():
            module.eval()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *problem: Any) -> None:
        self.release()

    def training_modes(self) -> None:
        """Back to training: modules of any trainee in train mode, all others in eval mode."""
        self._set_modes()

    def _make(self, name: str, members: list[nn.Module | nn.Parameter]) -> Trainee:
        settings = self.settings.of(name, self.method.lr_ratios().get(name, 1.0))
        made = Trainee(name, members, settings, self.world.device.type if self.precision == "fp16" else None)
        if not set(self._everything()).issuperset(made.parameters):
            raise RecipeError(
                f"trainees()['{name}'] holds parameters of neither the student, a teacher nor the method, so no checkpoint would hold them. "
                "Make their module an attribute of the method: self.critic = ..."
            )
        if made.scaler is not None and any(gradients.sharded(p) for p in made.parameters):
            raise RecipeError(
                "precision=fp16 scales its loss, which sharded gradients do not allow. Set train.precision=bf16."
            )
        return made

    def _trainee(self, update: Update) -> Trainee:
        if update.trainee not in self.trainees:
            raise RecipeError(
                f"{type(self.method).__name__} yields an update of '{update.trainee}'. {nearest(update.trainee, self.trainees)}"
            )
        if update.combine is not None and any(gradients.sharded(p) for p in self.trainees[update.trainee].parameters):
            raise RecipeError("combine needs whole gradients, and this trainee is sharded. Set train.shard=none.")
        if update.whole and (self.world.size > 1 or self.pieces > 1):
            raise RecipeError(
                f"the update of '{update.trainee}' is whole: it is not a sum over samples, so it runs in one process and one piece "
                f"(here: {self.world.size} processes, {self.pieces} pieces). Set train.micro_batch to train.batch_size and --gpus 1."
            )
        return self.trainees[update.trainee]

    def _step(
        self, trainee: Trainee, update: Update, progress: Progress, values: dict[str, float], grad_norm: float
    ) -> bool:
        bad = [f"the part '{name}' of the loss" for name, value in values.items() if not math.isfinite(value)]
        if bad or not math.isfinite(grad_norm):
            overflow = trainee.scaler is not None and not bad  # the scale was too large, no more
            what = ", ".join(bad) if bad else f"the gradient of '{trainee.name}' (all parts of the loss are finite)"
            trainee.optimizer.zero_grad(set_to_none=True)
            if trainee.scaler is not None:
                trainee.scaler.update(trainee.scaler.get_scale() * trainee.scaler.get_backoff_factor())
            if self.settings.on_nonfinite == "stop" and not overflow:
                ids = update.batch.get("id")
                raise NonFiniteError(what, progress.step, ids.tolist() if isinstance(ids, Tensor) else [])
            trainee.skipped += 1
            return False
        clip = trainee.settings.clip
        if clip is not None and grad_norm > clip:
            gradients.scale_(trainee.parameters, clip / (grad_norm + 1e-6))
        rate = optimisers.learning_rate(trainee.settings, progress)
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        if trainee.scaler is not None:
            trainee.scaler.step(trainee.optimizer)
            trainee.scaler.update()
        else:
            trainee.optimizer.step()
            if trainee.optimizer.defaults.get(
                "fused"
            ):  # the fused step does not count as a change in torch's own books
                torch.autograd.graph.increment_version([p for p in trainee.parameters if p.grad is not None])
        return True

    def _activate(self, trainee: Trainee) -> None:
        """Only the trainee's parameters require gradients; toggled when the trainee changes, not at every step.

        A teacher that is the student's own network stays a teacher: in eval mode, its gradient stopped.
        """
        if self._active != trainee.name:
            learning = set(map(id, trainee.parameters))
            for p, _ in self._own_requires_grad:
                p.requires_grad_(id(p) in learning)
            self._active = trainee.name
        learning = set(map(id, trainee.modules))
        for teacher in self.teachers:
            teacher.learning = id(teacher.model) in learning and teacher.model is not self.method.student.model

    def _set_modes(self) -> None:
        for module in self.modules():
            module.eval()
        for trainee in self.trainees.values():
            for module in trainee.modules:
                module.train()

    def modules(self) -> list[nn.Module]:
        """The networks at hand: the student, the method with its own modules, every teacher."""
        return [self.method.student.model, self.method, *(teacher.model for teacher in self.teachers)]

    def _everything(self) -> list[nn.Parameter]:
        return list(dict.fromkeys(p for module in self.modules() for p in module.parameters()))

    def _check_members(self, name: str, members: list[nn.Module | nn.Parameter]) -> None:
        for member in members:
            if isinstance(member, Actor):
                raise RecipeError(
                    f"trainees()['{name}'] holds a {type(member).__name__}; give its network: {member.whose}.model"
                )
            if any(member is teacher.model for teacher in self.teachers if teacher.stored):
                raise RecipeError(
                    f"{type(self.method).__name__} trains the teacher, and a store of its answers cannot learn. Use the teacher itself."
                )

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks compute in the run's precision."""
        if self._half is None:
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=self._half)

    def _pieces_for(self, update: Update, trainee: Trainee) -> int:
        if update.whole:
            return 1
        if self.pieces == 0:
            self.pieces = self._find(update, trainee)
        return self.pieces

    def _find(self, update: Update, trainee: Trainee) -> int:
        """Try growing numbers of pieces until what one keeps for its backward pass fits. Leaves no trace."""
        size, limit = rows(update.batch), self.limit
        if limit is None and self.world.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.world.device)
            limit = int(free * 0.9) - 3 * sum(p.numel() * p.element_size() for p in trainee.parameters)
        if limit is None:
            return 1
        generators = random_state.capture(self.world.device)
        buffers = [(b, b.clone()) for module in self.modules() for b in module.buffers()]

        def trial(pieces: int) -> int:
            piece = cut(update.batch, pieces)[0]

            def forward() -> Any:
                with torch.enable_grad(), self.autocast():
                    return update.loss(piece)

            try:
                kept = kept_bytes(forward, besides=[*self._everything(), *update.batch.values()])
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                kept = limit + 1
            return (
                limit + 1 if self.world.any(kept > limit) else kept
            )  # decided by all, or sharded layers wait for ever

        try:
            found = find_pieces(trial, limit, self.world.most(size))
        finally:
            random_state.restore(generators, self.world.device)
            with torch.no_grad():
                for buffer, old in buffers:
                    buffer.copy_(old)
        return max(found, 1)

    def _gradient_of_parts(self, taken: Taken, trainee: Trainee) -> dict[str, Float[Tensor, "parameters"]]:
        """Each part's own gradient as one vector, over all processes; empty where it was not asked for."""
        vectors = {}
        for name in taken.values if taken.per_part else ():
            found = zip(taken.per_part.get(name, [None] * len(trainee.parameters)), trainee.parameters)
            filled = [(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in found]
            vectors[name] = self.world.sum_(torch.cat(filled))
        return vectors

    def _combine(self, update: Update, parts: list[Float[Tensor, "parameters"]], trainee: Trainee) -> None:
        """Replace the gradient of the sum by what an aggregator makes of the parts' gradients, one row per part.

        A part without a gradient (nothing counted, or nothing of it learns) is in conflict with nobody and left out.
        """
        if not parts:
            return
        joined, offset = self.world.same(update.combine(torch.stack(parts)).contiguous()), 0  # some draw at random
        for p in trainee.parameters:
            p.grad = joined[offset : offset + p.numel()].view_as(p).to(p.dtype)
            offset += p.numel()


def _terms(
    values: Mapping[str, float], taken: Taken, gradient: Mapping[str, Float[Tensor, "parameters"]]
) -> dict[str, dict[str, float]]:
    """A log entry per part: its mean, its share of the loss, and on request the norm of its own gradient."""
    weighted = {name: abs(taken.weights[name] * value) for name, value in values.items()}
    total = sum(weighted.values())
    terms = {
        name: {"value": value, "weight": taken.weights[name], "share": weighted[name] / total if total else 0.0}
        for name, value in values.items()
    }
    for name, vector in gradient.items():
        terms[name]["grad_norm"] = float(vector.norm())
    return terms
