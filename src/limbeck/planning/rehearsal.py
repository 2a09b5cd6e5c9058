"""The real run, cut short: every stage makes a few of its steps, in a folder that is thrown away.

A rehearsal goes the whole way of a run (introduction, stages, checkpoints, control, measuring, report), so that what it
costs is what the run costs besides the steps, validations and rows that were left out. Those are counted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck import control, spending
from limbeck.actors import Actor, Student, Teacher
from limbeck.data.tensors import Data
from limbeck.engine import checkpoint, random_state
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.pieces import cut, kept_bytes, rows
from limbeck.engine.stepper import Stepper
from limbeck.engine.trainer import Situation, Stopped, Trainer
from limbeck.interrupts import Interrupts
from limbeck.life import Life
from limbeck.method import Method, Procedure, Progress, Stage, Update, name_of
from limbeck.methods.supervised import Supervised
from limbeck.planning import devices, watching
from limbeck.planning.seen import Piece, Seen
from limbeck.planning.watching import Alive, Clock, bytes_of, count_terms, heard, state_of, undisturbed
from limbeck.tasks import Task
from limbeck.writing import write_json

WARM = 3  # steps that fill caches and load libraries; they are not timed
LEAST, ENOUGH, MOST = 5, 2.0, 20.0  # timed steps, seconds of timed steps, seconds of a stage


class ShortTrainer(Trainer):
    """A trainer that stops when it has been timed, and notes what it did."""

    seen: Seen
    clock: Clock
    half: bool
    _began: float

    def watch(self, *, half: bool, in_control: bool) -> None:
        """Called on a trainer as the course made it."""
        settings, split = self.settings, self.loader.split
        self.half, self.clock = half, Clock(self.world.device)
        validation = (self.stage.data or self.situation.data).splits.get("validation")
        self.seen = Seen(
            *(self.stage.name, name_of(type(self.method)), in_control, self.steps, self.epochs),
            *(self.loader.steps_per_epoch, settings.batch_size, len(split), settings.patience is not None),
            *(settings.validate_every, settings.save_every, settings.micro_batch, self.stepper.precision),
            compiled=bool(settings.compile),
            teaches=getattr(getattr(self.method, "card", None), "teacher_mode", "frozen"),
        )
        self.seen.validation_rows = (len(validation), len(validation)) if validation is not None else (0, 0)
        self.seen.parameters = self._parameters()
        self.seen.optimizer = next(iter(self.stepper.trainees.values())).settings.optimizer["use"]
        setattr(self.stepper, "perform", self._perform)  # noqa: B010 - on this one stepper
        for trainee in self.stepper.trainees.values():
            optimizer = trainee.optimizer
            setattr(optimizer, "step", self.clock.wrapped("optimizer", optimizer.step))  # noqa: B010
        count_terms(self.clock, self.method)
        self._began = watching.now()

    def run(self) -> None:
        """Train until there is enough to tell."""
        situation = self.situation
        actors: dict[int, tuple[str, Actor]] = {id(situation.student): ("student", situation.student)}
        for member in (situation.teacher.members if situation.teacher else {}).values():
            actors.setdefault(id(member), ("teacher", member))
        with heard(self.clock, actors):
            super().run()
        self.seen.done = self.step

    def _step(self, batch: dict[str, Any], epoch: int, waited: float, clock: float) -> None:
        extra = self.seen.extra_s
        began = watching.now()
        with self.clock("other"):
            super()._step(batch, epoch, waited, clock)
        spent = waited + watching.now() - began
        sections = self.clock.take() | {"data": waited}
        looked, elapsed = self.seen.extra_s - extra, watching.now() - self._began
        self.seen.last = (max(spent - looked, 1e-9), len(batch["id"]))
        if not looked and (self.step > WARM or (self.step > 1 and elapsed > ENOUGH)):
            self.seen.timed.append((spent, len(batch["id"])))
            for name, seconds in sections.items():
                self.seen.sections[name] = self.seen.sections.get(name, 0.0) + seconds
        timed = sum(seconds for seconds, _ in self.seen.timed)
        late = elapsed > MOST and timed > 0
        if (len(self.seen.timed) >= LEAST and timed >= ENOUGH) or late:
            self.steps = self.step

    def _perform(self, update: Update, progress: Progress, *, measure: bool = False) -> Any:
        self._mind_the_memory(update)
        first_look = progress.step == min(1, self.steps - 1) and update.trainee not in self.seen.updates
        if not first_look:
            with self.clock("backward"):
                return Stepper.perform(self.stepper, self._heard(update), progress, measure=measure)
        began = watching.now()
        alive = Alive()
        with alive:
            done = Stepper.perform(self.stepper, update, progress, measure=measure)
        self._look(update, alive.peak)
        self.seen.extra_s += max(watching.now() - began, 1e-9)
        return done

    def _heard(self, update: Update) -> Update:
        return Update(
            update.trainee, _Heard(self.clock, update.loss), update.batch, update.combine, update.whole
        )  # what is not an actor's is the method's

    def _mind_the_memory(self, update: Update) -> None:
        """Before the first update: cut it further where it would not fit here. The plan is about the whole piece."""
        stepper, count, device = self.stepper, rows(update.batch), self.world.device
        if self.step or update.whole or count < 8 or self.seen.forced > 1:
            return
        began, pilot = watching.now(), 4
        trainee = stepper._trainee(update)
        stepper._activate(trainee)
        kept = self._kept(update, cut(update.batch, count // pilot)[0], half=False)
        whole = 2 * kept / pilot * count + 3 * bytes_of(trainee.parameters)
        room = 0.8 * devices.free(device)
        asked = max(stepper.pieces, 1)
        while whole / asked / self.seen.forced > room and self.seen.forced < count:
            self.seen.forced *= 2
            stepper.pieces = asked * self.seen.forced
        self.seen.extra_s += watching.now() - began

    def _kept(self, update: Update, piece: dict[str, Any], *, half: bool) -> int:
        """Bytes that autograd keeps of one piece; with `half` under bf16 autocast, as a GPU would."""
        stepper, device = self.stepper, self.world.device
        cast = torch.autocast(device.type, dtype=torch.bfloat16) if half else stepper.autocast()

        def forward() -> Any:
            with torch.enable_grad(), cast:
                return update.loss(piece)

        besides = [*stepper._everything(), *update.batch.values()]
        with undisturbed(stepper, device):
            return kept_bytes(forward, besides=besides)

    def _look(self, update: Update, alive: int) -> None:
        """What lies in memory in this update, each kind of it."""
        stepper, method, situation = self.stepper, self.method, self.situation
        trainee = stepper.trainees[update.trainee]
        pieces = 1 if update.whole else max(stepper.pieces, 1)
        piece = max(cut(update.batch, pieces), key=rows)
        gradients = bytes_of(p.grad for p in trainee.parameters)
        self.seen.updates[update.trainee] = Piece(
            rows(piece),
            rows(update.batch),
            bytes_of(update.batch.values()),
            self._kept(update, piece, half=False),
            self._kept(update, piece, half=True) if self.half else None,
            alive,
            gradients,
            update.whole,
        )
        self.seen.pieces = pieces // self.seen.forced or 1
        students = bytes_of(state_of(situation.student.model))
        teachers = [m.model for m in (situation.teacher.members if situation.teacher else {}).values()]
        every = bytes_of(t for m in [situation.student.model, *teachers] for t in state_of(m))
        trainees = stepper.trainees.values()
        self.seen.memory = {
            "student": students,
            "teacher": every - students,
            "method": bytes_of(t for m in [situation.student.model, method, *teachers] for t in state_of(m)) - every,
            "gradients": bytes_of(p.grad for t in trainees for p in t.parameters),
            "optimizer": bytes_of(v for t in trainees for s in t.optimizer.state.values() for v in s.values()),
            "ema": bytes_of(self.ema.average.values()) if self.ema is not None else 0,
        }

    def _parameters(self) -> dict[str, int]:
        student = self.situation.student.model
        teachers = [m.model for m in (self.situation.teacher.members if self.situation.teacher else {}).values()]
        counted = {id(p) for m in [student, *teachers] for p in m.parameters()}
        return {
            "student": _count(student),
            "teacher": sum({id(p): p.numel() for m in teachers for p in m.parameters()}.values()),
            "method": sum(p.numel() for p in self.method.parameters() if id(p) not in counted),
            "learning": sum(p.numel() for t in self.stepper.trainees.values() for p in t.parameters),
        }

    def _validate(self, epoch: int) -> bool:
        began = watching.now()
        impatient = super()._validate(epoch)
        spent = watching.now() - began
        if self.validation is None or self.situation.task is None:
            return impatient
        again = spent
        if not self.seen.validations and spent < ENOUGH:  # the first one also loads libraries
            middle = watching.now()
            super()._validate(epoch)
            again = watching.now() - middle
            self.seen.extra_s += again
        self.seen.validation_s += spent
        self.seen.validations.append(min(spent, again))
        self.clock.take()
        return False


class _Heard:
    """A loss function with its time counted; to the division it is the function itself."""

    def __init__(self, clock: Clock, function: Any):
        self.call = clock.wrapped("method", function)
        inner = function
        while hasattr(inner, "func"):
            inner = inner.func
        self.__func__ = getattr(inner, "__func__", inner)
        self.__self__ = getattr(inner, "__self__", None)

    def __call__(self, batch: dict[str, Any]) -> Any:
        return self.call(batch)


class ShortCourse(Course):
    """A course whose stages end after a few steps; `all_seen` gets a note of each."""

    half = in_control = False
    all_seen: list[Seen]

    def _enter(self, stage: Stage, state: dict[str, Any] | None) -> Trainer:
        trainer = super()._enter(stage, state)
        trainer.__class__ = ShortTrainer  # the course makes plain ones
        assert isinstance(trainer, ShortTrainer)
        trainer.watch(half=self.half, in_control=self.in_control)
        self.all_seen.append(trainer.seen)
        return trainer

    def _save(self, trainer: Trainer, own: dict[str, Any] | None) -> None:
        began = watching.now()
        super()._save(trainer, own)
        assert isinstance(trainer, ShortTrainer)
        trainer.seen.saves.append(watching.now() - began)
        trainer.seen.saved_between += trainer.step > 0


@dataclass
class Rehearsal(Life):
    """A run that is cut short. `seen` tells of its stages; the folder may be thrown away after `live`."""

    half: bool = False
    mind_limit: bool = True
    seen: list[Seen] = field(default_factory=list)
    findings_s: float = 0.0
    asked: dict[str, float] = field(default_factory=dict)  # seconds of forward passes in the last measuring
    logits: int = 1
    found_control: Path | None = None
    beside: Path | None = None  # where a real run would lie: a control is looked for beside it
    procedure: str = ""
    checkpoints: dict[str, int] = field(default_factory=dict)

    def _course(
        self,
        folder: Path,
        plan: Any,
        student: Student,
        teacher: Teacher | None,
        task: Task,
        data: Data,
        interrupts: Interrupts,
    ) -> tuple[list[dict[str, Any]], Method | None]:
        in_control = folder != self.folder
        if not in_control:
            self.procedure = name_of(type(plan)) if isinstance(plan, Procedure) else ""
        log = Log(folder / "log.jsonl")
        settings, seed = self.recipe.train, self.recipe.seed
        situation = Situation(student, teacher, task, data, settings, seed, self.world, log, self.observer)
        situation.stop, situation.memory_limit = interrupts.asked, self._memory()
        keep, name = folder / "checkpoints", "control" if in_control else "run"

        def store(position: int, state: Mapping[str, Any]) -> None:
            written = checkpoint.save(keep, position, state)
            size = sum(file.stat().st_size for file in written.iterdir())
            self.checkpoints[name] = max(self.checkpoints.get(name, 0), size)

        course = ShortCourse(plan, situation, store=store)
        course.half, course.in_control, course.all_seen = self.half, in_control, self.seen
        random_state.seed_all(seed)
        try:
            ended = course.run()
        finally:
            log.close()
        for notice in dict.fromkeys(n for m in course.methods for n in m.notices):
            self.notices.append(notice)
        self.logits = math.prod(student.shapes.get("logits", (1,)))
        listed = [
            {
                "name": result.name,
                "method": name_of(type(method)),
                "epochs": result.epochs,
                "steps": result.steps,
                "seconds": round(result.seconds, 3),
                "selected_epoch": result.selected_epoch,
                "validation_loss": result.loss,
                "validation_metric": result.metric,
            }
            for result, method in zip(ended, course.methods)
        ]
        write_json(folder / "stages.json", listed)
        return listed, course.methods[-1] if course.methods else None

    def _control(
        self, untrained: nn.Module, student: Student, task: Task, data: Data, interrupts: Interrupts
    ) -> Student | None:
        plan = self.recipe.build_plan()
        if self.recipe.control == "train" and not isinstance(plan, Supervised) and self.beside is not None:
            mark = control.mark(untrained.to(self.world.device), data, task, self.recipe)
            self.found_control = control.find(self.beside, mark)
        return super()._control(untrained, student, task, data, interrupts)

    def _findings(self, method: Method, data: Data) -> list[dict[str, Any]]:
        began = watching.now()
        try:
            return super()._findings(method, data)
        finally:
            self.findings_s = watching.now() - began

    def _finish(
        self,
        started: float,
        student: Student,
        teacher: Teacher | None,
        without: Student | None,
        task: Task,
        data: Data,
        stages: list[dict[str, Any]],
    ) -> None:
        clock = Clock(self.world.device)
        actors: dict[int, tuple[str, Actor]] = {
            id(actor): ("asked", actor)
            for actor in (student, without, *(teacher.members.values() if teacher is not None else ()))
            if actor is not None
        }
        with heard(clock, actors):
            super()._finish(started, student, teacher, without, task, data, stages)
        self.asked = clock.take()

    def _watch(self, teacher: Teacher | None) -> Callable[[], Stopped | None]:
        """Answers are kept where a real run will look for them: this folder may be thrown away."""
        beside = self.beside or Path.cwd() / "runs" / "run"
        return spending.watch(teacher, beside, self.recipe.limit.usd, main=False)

    def _limits(self, interrupts: Interrupts, started: float) -> None:
        interrupts.folder = self.folder

    def _memory(self) -> int | None:
        return super()._memory() if self.mind_limit else None

    def _trackers(self) -> tuple[Any, ...]:
        return ()


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
