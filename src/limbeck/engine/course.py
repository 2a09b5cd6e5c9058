"""A whole run of stages: from one method, or from a procedure that yields them; finished stages are not repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from typing import Any

import torch
import torch.distributed as dist

from limbeck.actors import Teacher
from limbeck.data.tensors import Data
from limbeck.engine import random_state, weights
from limbeck.engine.recompute import recomputing
from limbeck.engine.settings import TrainSettings
from limbeck.engine.sharding import Sharded, spread
from limbeck.engine.trainer import Situation, Trainer
from limbeck.engine.validate import to_device
from limbeck.errors import RecipeError
from limbeck.method import Card, Method, Procedure, Stage, StageResult

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
        self._untouched = self._versions()
        self._sharded: Sharded | None = None
        self._compiled: Any = None

    def run(self, state: dict[str, Any] | None = None) -> list[StageResult]:
        """Run all stages; with `state` (a checkpoint) continue from there."""
        if state is not None and isinstance(self.plan, Procedure):
            self.plan.memory = dict(state["memory"])
        for network in (self.situation.student.model, *(member.model for member in self._members().values())):
            network.eval()  # as after every stage, so that a procedure asks them alike in a resumed run
        weights.agree(self.situation.student.model, self.situation.world)
        stages = self._stages()
        stage = next(stages, None)
        while stage is not None:
            if state is not None and self._wants_more(stage, state):
                state = state["ended"] | {"finished": state["finished"][:-1], "memory": state["memory"]}
            if state is not None and len(self.results) < len(state["finished"]):
                result = self._recall(stage, state["finished"][len(self.results)])
                if len(self.results) + 1 == len(state["finished"]) and state["stage"] is None:
                    self._return_to(state)  # before the procedure sees the result: it may ask the student what is next
                    state = None
            else:
                fresh = state is None and not self.results
                trainer, state = self._enter(stage, state), None
                if (
                    fresh
                ):  # a disk that cannot be written shows at once, and there is always a state from before a fault
                    self._save(trainer, trainer.state())
                own, on = trainer.method.actors(), trainer.settings.gradient_checkpointing
                with recomputing(self.situation.student, *own, on=on):
                    trainer.run()
                ended = self._capture(trainer, trainer.state())
                result = trainer.select()
                if self._sharded is not None:
                    self._sharded.gather()
                self._close(trainer, result, ended)
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
            self.plan.look_at(self.situation.data)
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

    def _wants_more(self, stage: Stage, state: dict[str, Any]) -> bool:
        """Whether the stage that finished last has been given a longer budget since, so that it goes on from its end."""
        if state["stage"] is not None or len(self.results) + 1 != len(state["finished"]):
            return False
        settings, (epochs, steps) = self.settings_of(stage), state["budget"]
        return (settings.steps or 0) > (steps or 0) if settings.steps else (settings.epochs or 0) > (epochs or 0)

    def _settle(self, stage: Stage, structure: dict[str, Any] | None) -> Method:
        """Bind and set up the stage's method; repeat what was done to student and method before they were saved."""
        situation, method = self.situation, stage.method
        if not isinstance(method, Method):
            raise RecipeError(f"stage '{stage.name}' holds a {type(method).__name__}; a stage has one Method.")
        settle(method, situation, stage.data or situation.data)
        self.methods.append(method)
        method.to(situation.world.device)
        weights.agree(method, situation.world)  # each process may have drawn its own critic in setup
        if structure is not None:
            method.restructure(structure)
            for actor in (situation.student, *self._members().values()):
                actor.listen_again()
        return method

    def _recall(self, stage: Stage, past: dict[str, Any]) -> StageResult:
        """A finished stage: its method as it was left, and its result."""
        weights.give(self._settle(stage, past["structure"]), past["method"])
        result = StageResult(**past["result"])
        self._steps_before += result.steps
        self._finished.append(past)
        return result

    def _enter(self, stage: Stage, state: dict[str, Any] | None) -> Trainer:
        """A stage to be run, from its beginning or from where `state` left it."""
        situation = self.situation
        method = self._settle(stage, state["structure"] if state is not None else None)
        settings = self.settings_of(stage)
        self._sharded = None
        if settings.shard == "fsdp" and situation.world.size > 1:
            for actor in method.actors():
                spread(actor, situation.world)
            self._sharded = Sharded(situation.student, situation.world)
        self._compile(settings)
        trainer = Trainer(stage, situation, settings)
        situation.save = lambda own: self._save(trainer, own)
        if state is not None:
            weights.give(method, state["method"])
            trainer.restore(state["stage"])
            self._return_to(state)
        return trainer

    def _compile(self, settings: TrainSettings) -> None:
        """Compile the student in place, once; its hooks are there already, for a hook that comes later is not heard."""
        model = self.situation.student.model
        if settings.compile and self._compiled is not model:
            model.compile(**({"backend": settings.compile} if isinstance(settings.compile, str) else {}))
            self._compiled = model

    def _return_to(self, state: dict[str, Any]) -> None:
        """Student, teachers, random generators and log as they were when `state` was saved."""
        self._give_networks(state)
        random_state.restore_all(self._own_random(state), self.situation.world.device)
        self.situation.log.rewind(state["log"])

    def _save(self, trainer: Trainer, own: dict[str, Any] | None) -> None:
        """Write a checkpoint in the middle of a stage."""
        self._store(trainer, self._capture(trainer, own))

    def _store(self, trainer: Trainer, state: dict[str, Any]) -> None:
        if self.situation.world.main and self.store is not None:
            self.store(self._steps_before + trainer.step, state | {"finished": self._finished})
        self.situation.world.wait()

    def _capture(self, trainer: Trainer, own: dict[str, Any] | None) -> dict[str, Any]:
        """The state of the run in the middle of a stage, or (own=None) between two. Every process must call it."""
        situation = self.situation
        networks = {name: weights.take(module) for name, module in trainer.networks().items()}
        for name, version in self._versions().items():
            if version != self._untouched[name]:
                self._taught[f"teacher.{name}"] = weights.take(self._members()[name].model)
        randoms: list[Any] = [random_state.capture_all(situation.world.device)]
        if situation.world.size > 1:
            randoms = [None] * situation.world.size
            dist.all_gather_object(randoms, random_state.capture_all(situation.world.device))
        return {
            "torch": torch.__version__,
            "student": networks["student"],
            "teachers": dict(self._taught),
            "method": networks["method"] if own is not None else {},
            "structure": trainer.method.structure() if own is not None else {},
            "stage": own,
            "budget": [trainer.settings.epochs, trainer.settings.steps],
            "memory": self.plan.memory if isinstance(self.plan, Procedure) else {},
            "random": randoms,
            "log": situation.log.position(),
        }

    def _close(self, trainer: Trainer, result: StageResult, ended: dict[str, Any]) -> None:
        """A stage is over: a checkpoint between two stages, which keeps how the stage ended in case its budget grows."""
        self._finished.append(
            {
                "result": dataclasses.asdict(result),
                "structure": trainer.method.structure(),
                "method": weights.take(trainer.method),
            }
        )
        self._store(trainer, self._capture(trainer, None) | {"ended": ended})
        self._steps_before += result.steps

    def _give_networks(self, state: dict[str, Any]) -> None:
        weights.give(self.situation.student.model, state["student"])
        self._taught = dict(state["teachers"])
        for name, stored in state["teachers"].items():
            weights.give(self._members()[name.removeprefix("teacher.")].model, stored)

    def _members(self) -> dict[str, Teacher]:
        return self.situation.teacher.members if self.situation.teacher is not None else {}

    def _versions(self) -> dict[str, int]:
        """How often each teacher's tensors were written to, by an optimiser or by hand: one that was must be saved."""
        return {
            name: sum(tensor._version for tensor in (*member.model.parameters(), *member.model.buffers()))
            for name, member in self._members().items()
        }

    def _own_random(self, state: dict[str, Any]) -> dict[str, Any]:
        rank = self.situation.world.rank
        if rank >= len(state["random"]):
            raise RecipeError(
                f"this run was saved by {len(state['random'])} processes and is resumed by {self.situation.world.size}; give --gpus {len(state['random'])}."
            )
        return state["random"][rank]


def settle(method: Method, situation: Situation, data: Data | None = None) -> None:
    """Bind a method to the situation, probe both actors on a few samples, and let it build what it needs.

    Raises:
        RecipeError: a view, tap, label or shape that does not fit; a method that needs a teacher and has none.
    """
    student, teacher, task = situation.student, situation.teacher, situation.task
    method.bind(student, teacher, task)
    method.look_at(data or situation.data)
    card = getattr(method, "card", Card(type(method).__name__))
    if teacher is not None:
        for member in {id(t): t for t in [teacher, *teacher.members.values()]}.values():
            member.mode = "through" if card.teacher_mode == "through" else "frozen"
    elif card.teacher_mode != "none" and card.name not in ("sum", "terms") and card.needs:
        raise RecipeError(
            f"{card.name} needs a teacher, and there is none. Give teacher=..., or a method that needs none (supervised)."
        )
    method.prepare()
    split = method.data.splits["train"]
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
    for stage in stages:  # noqa: UP028 - a list takes no results
        yield stage
