"""One stage: batches in, updates out, with validation, selection, logging, limits and checkpoints in between."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from limbeck.actors import Student, Teacher
from limbeck.data.loader import Loader
from limbeck.data.tensors import Data
from limbeck.engine import validate, weights
from limbeck.engine.ema import MovingAverage
from limbeck.engine.log import Log
from limbeck.engine.processes import World
from limbeck.engine.refusals import refuse_a_batch_of_one
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stepper import Stepper
from limbeck.errors import RecipeError
from limbeck.evaluation import quality
from limbeck.method import Method, Outcome, Progress, Rebuilt, Stage, StageResult, Update
from limbeck.precision import lent
from limbeck.randomness import seeds_for
from limbeck.tasks import Task


class Observer(Protocol):
    """Who watches a run: the terminal, a notebook, nobody."""

    def say(self, sentence: str) -> None: ...
    def stage(self, name: str, steps: int, done: int) -> None: ...
    def step(self, progress: Progress, loss: float, samples_per_s: float) -> None: ...
    def validation(self, progress: Progress, loss: float, metric: float | None) -> None: ...


class Silent:
    """Nobody watches."""

    def say(self, sentence: str) -> None:
        """Nothing."""

    def stage(self, name: str, steps: int, done: int) -> None:
        """Nothing."""

    def step(self, progress: Progress, loss: float, samples_per_s: float) -> None:
        """Nothing."""

    def validation(self, progress: Progress, loss: float, metric: float | None) -> None:
        """Nothing."""


class Stopped(Exception):  # noqa: N818 - not an error: the run can go on
    """The run ended at a step boundary with everything saved; `reason` is `interrupted` or `limit`."""

    def __init__(self, reason: str, sentence: str):
        self.reason = reason
        super().__init__(sentence)


@dataclass
class Situation:
    """Everything a stage needs that is not the method: the actors, the data, where and how to write."""

    student: Student
    teacher: Teacher | None
    task: Task | None
    data: Data
    settings: TrainSettings
    seed: int = 0
    world: World = field(default_factory=World)
    log: Log = field(default_factory=lambda: Log(None))
    observer: Observer = field(default_factory=Silent)
    save: Callable[[dict[str, Any]], None] | None = None
    stop: Callable[[], Stopped | None] = lambda: None
    memory_limit: int | None = None


class Trainer:
    """Trains one stage's method. `state()` is all that a restart needs; `restore` continues from it, bit for bit."""

    def __init__(self, stage: Stage, situation: Situation, settings: TrainSettings):
        self.stage, self.situation, self.settings = stage, situation, settings
        self.method, self.world = stage.method, situation.world
        data: Data = stage.data or situation.data
        seen = data.encoded or situation.teacher
        self.loader = Loader(
            data.splits["train"],
            settings.batch_size,
            seed=situation.seed,
            shuffle=True,
            workers=settings.workers,
            rank=self.world.rank,
            world=self.world.size,
            view_seeds=seeds_for if seen is None else seen.view_seeds,
        )
        per_epoch = self.loader.steps_per_epoch
        self.steps = settings.steps if settings.steps is not None else (settings.epochs or 0) * per_epoch
        self.epochs = math.ceil(self.steps / per_epoch)
        validation = data.splits.get("validation")
        self.validation = (
            validate.batches(validation, max(settings.batch_size, 256), self.world) if validation is not None else None
        )
        self.stepper = Stepper(self.method, settings, self.world, pieces=self._pieces(), limit=situation.memory_limit)
        refuse_a_batch_of_one(self.method, settings, self.loader.split, max(self.stepper.pieces, 1), self.world)
        self.ema = MovingAverage(situation.student.model, settings.ema) if settings.ema else None
        self.step, self.seconds, self.last_loss = 0, 0.0, float("nan")
        self.best = self.latest = _none_yet()
        self.best_weights: dict[str, Any] | None = None
        self._saved_at = time.monotonic()

    def run(self) -> None:
        """Train to the end of the budget."""
        self.situation.observer.stage(self.stage.name, self.steps, self.step)
        started = time.monotonic() - self.seconds
        try:
            with self.stepper:
                self._epochs(started)
        finally:
            self.seconds = time.monotonic() - started

    def select(self) -> StageResult:
        """Put the selected weights into the student (and the method); gives what the stage came to."""
        if self.settings.select == "best" and self.best_weights is not None:
            self._give(self.best_weights)
        elif self.ema is not None:
            self.ema.give()
        chosen = self.best if self.settings.select == "best" else self.latest
        return StageResult(
            self.stage.name,
            loss=chosen["loss"],
            metric=chosen["metric"],
            epochs=self.epochs,
            steps=self.step,
            seconds=self.seconds,
            selected_epoch=chosen["epoch"],
        )

    def _epochs(self, started: float) -> None:
        per_epoch = self.loader.steps_per_epoch
        while self.step < self.steps:
            epoch, inside = divmod(self.step, per_epoch)
            clock = time.monotonic()
            for batch in self.loader.epoch(epoch, inside):
                waited = time.monotonic() - clock
                self._step(validate.to_device(batch, self.world.device), epoch, waited, clock)
                clock = time.monotonic()
                last = self.step >= self.steps
                if self.step % per_epoch == 0 or last:
                    done = epoch + 1
                    if (done % self.settings.validate_every == 0 or last) and self._validate(epoch):
                        self.steps = self.step  # patience is at its end
                        last = True
                self.seconds = time.monotonic() - started
                self._pause()
                if last:
                    break

    def _pause(self) -> None:
        """Between two steps: save if it is time, stop if somebody asked."""
        stopped = self.situation.stop()
        if self.world.any(stopped is not None):
            self._save()
            raise stopped or Stopped("interrupted", "another process was interrupted.")
        due = time.monotonic() - self._saved_at >= self.settings.save_every
        if self.world.agree(due) and self.step < self.steps:
            self._save()

    def _save(self) -> None:
        if self.situation.save is not None:
            self.situation.save(self.state())
        self._saved_at = time.monotonic()

    def _step(self, batch: dict[str, Any], epoch: int, waited: float, clock: float) -> None:
        progress = Progress(self.step, self.steps, epoch, self.epochs, self.situation.seed)
        object.__setattr__(self.method, "progress", progress)
        before = _plain_attributes(self.method) if self.step == 0 else None
        logging = self.step % self.settings.log_every == 0 or self.step + 1 == self.steps
        lines: list[dict[str, Any]] = []
        # What is raised in the middle of a step is not saved: one goes on from step boundaries only.
        with torch.no_grad(), lent(self.stepper.autocast):
            self._play(batch, progress, logging, lines)
        if before is not None:
            _refuse_changes(self.method, before)
        self.step += 1
        if lines:
            self.last_loss = lines[-1]["loss"]
        rate = len(batch["id"]) * self.world.size / max(time.monotonic() - clock, 1e-9)
        self.situation.observer.step(progress, self.last_loss, rate)  # nan where nothing is updated
        if logging:
            for line in lines:
                self.situation.log.write(line | {"samples_per_s": round(rate, 1), "wait_s": round(waited, 6)})

    def _play(self, batch: dict[str, Any], progress: Progress, logging: bool, lines: list[dict[str, Any]]) -> None:
        """Run `learn` once, performing what it yields."""
        play = self.method.learn(batch, progress)
        sent: Outcome | None = None
        while True:
            try:
                item = play.send(sent) if sent is not None else next(play)  # type: ignore[arg-type]
            except StopIteration:
                return
            if isinstance(item, Rebuilt):
                self.stepper.rebuild(item.trainee)
                self.best, self.best_weights = _none_yet(), None  # what was best before has other shapes
                if self.ema is not None:
                    self.ema = MovingAverage(self.situation.student.model, self.ema.decay)
                sent = Outcome()
                continue
            if not isinstance(item, Update):
                raise TypeError(f"learn yields Update or Rebuilt, not {type(item).__name__}.")
            measure = logging and self.settings.log_gradients
            sent, terms, made = self.stepper.perform(item, progress, measure=measure)
            trainee = self.stepper.trainees[item.trainee]
            ours = item.trainee == "student" or self.situation.student.model in trainee.modules
            if made and self.ema is not None and ours:
                self.ema.update()
            loss = sum(term["value"] * term["weight"] for term in terms.values())
            lines.append(
                {
                    "step": progress.step,
                    "epoch": progress.epoch,
                    "stage": self.stage.name,
                    "trainee": item.trainee,
                    "terms": terms,
                    "loss": loss,
                    "lr": trainee.optimizer.param_groups[0]["lr"],
                    "grad_norm": sent.grad_norm,
                    **({} if made else {"skipped": trainee.skipped}),
                }
            )

    def _validate(self, epoch: int) -> bool:
        """Measure on the validation split, keep the best; whether patience is at its end."""
        if self.validation is None or self.situation.task is None:
            return False
        for module in self.stepper.modules():
            module.eval()
        try:
            if self.ema is not None:
                with self.ema.in_place():
                    loss, metric = self._measure()
            else:
                loss, metric = self._measure()
        finally:
            self.stepper.training_modes()
        self.situation.observer.validation(Progress(self.step, self.steps, epoch, self.epochs), loss, metric)
        line = {
            "event": "validation",
            "step": self.step,
            "epoch": epoch,
            "stage": self.stage.name,
            "loss": loss,
            "metric": metric,
        }
        self.situation.log.write(line)
        self.latest = {"loss": loss, "metric": metric, "epoch": epoch}
        if self.best["loss"] is None or self._rank(loss, metric) < self._rank(self.best["loss"], self.best["metric"]):
            self.best = {"loss": loss, "metric": metric, "epoch": epoch, "since": 0}
            if self.settings.select == "best":
                self.best_weights = self._take()
        else:
            self.best["since"] += 1
        return self._impatient()

    def _impatient(self) -> bool:
        return self.settings.patience is not None and self.best["since"] >= self.settings.patience

    def _measure(self) -> tuple[float, float | None]:
        assert self.validation is not None
        assert self.situation.task is not None
        loss = validate.mean_loss(self.method.selection, self.validation, self.world)
        task = self.situation.task
        seen = validate.outputs_of(self.situation.student, self.validation, self.world, task)
        return loss, quality.primary(task.metric, task.name)(seen["outputs"], seen["target"])

    def _rank(self, loss: float, metric: float | None) -> tuple[float, ...]:
        """Smaller is better: by the metric with ties broken by the loss, or by the loss alone, as the method says."""
        if self.method.selects_by() == "loss" or metric is None or math.isnan(metric):
            return (loss,)
        assert self.situation.task is not None
        return (-metric if self.situation.task.higher_is_better else metric, loss)

    def networks(self) -> dict[str, nn.Module]:
        """Everything whose weights this run may change: the student, the method's own modules, teachers that learn."""
        found: dict[str, nn.Module] = {"student": self.situation.student.model, "method": self.method}
        learning = {p for trainee in self.stepper.trainees.values() for p in trainee.parameters}
        learning -= set(self.situation.student.model.parameters())
        for name, teacher in (self.situation.teacher.members if self.situation.teacher else {}).items():
            if not learning.isdisjoint(teacher.model.parameters()):
                found[f"teacher.{name}"] = teacher.model
        return found

    def _take(self) -> dict[str, Any]:
        if self.ema is not None:
            with self.ema.in_place():
                return {name: weights.take(module) for name, module in self.networks().items()}
        return {name: weights.take(module) for name, module in self.networks().items()}

    def _give(self, state: dict[str, Any]) -> None:
        for name, module in self.networks().items():
            weights.give(module, state[name])

    def state(self) -> dict[str, Any]:
        """All that a restart of this stage needs besides the student's, the method's and the teachers' weights."""
        return {
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "pieces": self.stepper.pieces,
            "optimizers": {
                name: {
                    "state": weights.take_optimizer(trainee.optimizer),
                    "scaler": trainee.scaler.state_dict() if trainee.scaler else None,
                    "skipped": trainee.skipped,
                }
                for name, trainee in self.stepper.trainees.items()
            },
            "ema": self.ema.state_dict() if self.ema else None,
            "best": self.best,
            "latest": self.latest,
            "best_weights": self.best_weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`; weights and random generators are put back by the course."""
        self.step, self.seconds = state["step"], state["seconds"]
        self.stepper.pieces = state["pieces"]
        for name, stored in state["optimizers"].items():
            trainee = self.stepper.trainees[name]
            weights.give_optimizer(trainee.optimizer, stored["state"])
            if trainee.scaler is not None and stored["scaler"]:
                trainee.scaler.load_state_dict(stored["scaler"])
            trainee.skipped = stored["skipped"]
        if self.ema is not None and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        self.best, self.best_weights = state["best"], state["best_weights"]
        self.latest = state.get("latest", self.best)
        if self._impatient():
            self.steps = self.step

    def _pieces(self) -> int:
        if self.settings.micro_batch == "auto":
            return 0
        return max(1, math.ceil(self.settings.batch_size / self.world.size / self.settings.micro_batch))


def _none_yet() -> dict[str, Any]:
    return {"loss": None, "metric": None, "epoch": None, "since": 0}


def _plain_attributes(method: Method) -> dict[str, str]:
    skip = ("training", "progress", "student", "teacher", "task", "data", "notices")
    return {k: repr(v) for k, v in vars(method).items() if not k.startswith("_") and k not in skip and not callable(v)}


def _refuse_changes(method: Method, before: dict[str, str]) -> None:
    after = _plain_attributes(method)
    changed = [name for name in after if after[name] != before.get(name)]
    if changed:
        raise RecipeError(
            f"{type(method).__name__}.{changed[0]} changed during the first step, and it is a plain attribute, which no checkpoint holds: a "
            "resumed run would be another run. Make it a buffer: self.register_buffer(name, torch.tensor(value))."
        )
