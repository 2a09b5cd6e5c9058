"""A whole run of stages: from one method, or from a procedure that yields them; finished stages are not repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any

import torch
import torch.distributed as dist

from limbeck.engine import random_state, weights
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Trainer
from limbeck.engine.validate import to_device
from limbeck.errors import RecipeError
from limbeck.method import Method, Procedure, Stage, StageResult

Stages = Generator[Stage, StageResult, None]


class Course:
    """Runs stages one after another and can be cut off and continued at every step.

    Args:
        plan: a method (one stage), a procedure, or a list of stages.
        situation: actors, data, settings; its `save` is set here.
        store: writes a checkpoint (position, state); None keeps none.
    """

    def __init__(self, plan: Method | Procedure | Iterable[Stage], situation: Situation, store: Any = None):
        self.plan, self.situation, self.store = plan, situation, store
        self.results: list[StageResult] = []
        self.methods: list[Method] = []
        self._finished: list[dict[str, Any]] = []
        self._taught: dict[str, Any] = {}
        self._steps_before = 0

    def run(self, state: dict[str, Any] | None = None) -> list[StageResult]:
        """Run all stages; with `state` (a checkpoint) continue from there."""
        stages = self._stages()
        stage = next(stages, None)
        while stage is not None:
            position = len(self.results)
            past = state["finished"][position] if state is not None and position < len(state["finished"]) else None
            trainer = self._enter(stage, state if past is None else None, past)
            if past is not None:
                result = StageResult(**past["result"])
                self._steps_before += result.steps
                self._finished.append(past)
            else:
                state = None
                result = trainer.run()  # type: ignore[union-attr]
                self._close(trainer, result)  # type: ignore[arg-type]
            self.results.append(result)
            try:
                stage = stages.send(result)
            except StopIteration:
                break
        return self.results

    def _stages(self) -> Stages:
        if isinstance(self.plan, Method):
            return _one(Stage("distil", self.plan))
        if isinstance(self.plan, Procedure):
            self.plan.bind(self.situation.student, self.situation.teacher, self.situation.task)
            return self.plan.stages()
        return _each(self.plan)

    def settings_of(self, stage: Stage) -> TrainSettings:
        """The run's settings with what the stage says put over them."""
        base = self.situation.settings.model_dump(exclude_unset=True)
        own = dict(stage.train)
        if stage.steps is not None:
            own["steps"] = stage.steps
        if stage.epochs is not None:
            own["epochs"] = stage.epochs
        if "steps" in own and own["steps"] is not None:
            own["epochs"] = None
        elif "epochs" in own and own["epochs"] is not None:
            own["steps"] = None
        return TrainSettings(**(base | own))

    def _enter(self, stage: Stage, state: dict[str, Any] | None, past: dict[str, Any] | None) -> Trainer | None:
        """Bind and set up the stage's method; put stored weights back; make its trainer (unless the stage is past)."""
        situation, method = self.situation, stage.method
        if not isinstance(method, Method):
            raise RecipeError(f"stage '{stage.name}' holds a {type(method).__name__}; a stage has one Method.")
        if state is not None and state["stage"] is None:
            self._give_networks(state)
            random_state.restore_all(self._own_random(state), situation.world.device)
        settle(method, situation)
        self.methods.append(method)
        method.to(situation.world.device)
        if past is not None:
            method.restructure(past["structure"])
            weights.give(method, past["method"])
            return None
        resumed = state is not None and state["stage"] is not None
        if resumed:
            assert state is not None
            method.restructure(state["structure"])
        trainer = Trainer(stage, situation, self.settings_of(stage))
        situation.save = lambda own: self._save(trainer, own)
        if resumed:
            assert state is not None
            self._give_networks(state)
            weights.give(method, state["method"])
            trainer.restore(state["stage"], self._own_random(state))
            situation.log.rewind(state["log"])
        elif state is not None:
            situation.log.rewind(state["log"])
        return trainer

    def _save(self, trainer: Trainer, own: dict[str, Any] | None) -> None:
        """Write a checkpoint: in the middle of a stage, or (own=None) between two."""
        situation = self.situation
        networks = {name: weights.take(module) for name, module in trainer.networks().items()}
        self._taught |= {name: state for name, state in networks.items() if name.startswith("teacher.")}
        randoms: list[Any] = [random_state.capture_all(situation.world.device)]
        if situation.world.size > 1:
            randoms = [None] * situation.world.size
            dist.all_gather_object(randoms, random_state.capture_all(situation.world.device))
        if situation.world.main and self.store is not None:
            state = {
                "torch": torch.__version__,
                "student": networks["student"],
                "teachers": self._taught,
                "method": networks["method"] if own is not None else {},
                "structure": trainer.method.structure() if own is not None else {},
                "stage": own,
                "finished": self._finished,
                "random": randoms,
                "log": situation.log.position(),
            }
            self.store(self._steps_before + trainer.step, state)
        situation.world.wait()

    def _close(self, trainer: Trainer, result: StageResult) -> None:
        self._steps_before += result.steps
        self._finished.append(
            {
                "result": dataclasses.asdict(result),
                "structure": trainer.method.structure(),
                "method": weights.take(trainer.method),
            }
        )
        self._steps_before -= result.steps
        self._save(trainer, None)
        self._steps_before += result.steps

    def _give_networks(self, state: dict[str, Any]) -> None:
        weights.give(self.situation.student.model, state["student"])
        self._taught = dict(state["teachers"])
        members = self.situation.teacher.members if self.situation.teacher else {}
        for name, stored in state["teachers"].items():
            weights.give(members[name.removeprefix("teacher.")].model, stored)

    def _own_random(self, state: dict[str, Any]) -> dict[str, Any]:
        rank = self.situation.world.rank
        if rank >= len(state["random"]):
            raise RecipeError(
                f"this run was saved by {len(state['random'])} processes and is resumed by {self.situation.world.size}; give --gpus {len(state['random'])}."
            )
        return state["random"][rank]


def settle(method: Method, situation: Situation) -> None:
    """Bind a method to the situation, probe both actors on a few samples, and let it build what it needs.

    Raises:
        RecipeError: a view, tap, label or shape that does not fit; a method that needs a teacher and has none.
    """
    student, teacher, task = situation.student, situation.teacher, situation.task
    method.bind(student, teacher, task)
    card = method.card
    if teacher is not None:
        for member in {id(t): t for t in [teacher, *teacher.members.values()]}.values():
            member.mode = "through" if card.teacher_mode == "through" else "frozen"
    elif card.teacher_mode != "none" and card.name not in ("sum", "terms") and card.needs:
        raise RecipeError(
            f"{card.name} needs a teacher, and there is none. Give teacher=..., or a method that needs none (supervised)."
        )
    method.prepare()
    split = situation.data.splits["train"]
    probe = to_device(split.__getitems__(list(range(min(4, len(split))))), situation.world.device)
    for actor in (student, teacher):
        if actor is not None:
            actor.probe(probe)
    if task is not None and task.target in probe and "logits" in student.shapes:
        task.check(student.shapes["logits"], probe[task.target], "student")
    method.setup()


def _one(stage: Stage) -> Stages:
    yield stage


def _each(stages: Iterable[Stage]) -> Stages:
    yield from stages
