"""Methods of generation for the process tests: several networks, alone or over two processes, plain or spread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data
from limbeck.engine import checkpoint, random_state, weights
from limbeck.engine.course import Course
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.method import Method, Stage
from limbeck.methods.consistency import Consistency
from limbeck.methods.dmd2 import DMD2
from limbeck.methods.progressive import Halving
from limbeck.randomness import normal, seeds_for, uniform

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from points import network, points


class Keyed(Method):
    """What is drawn belongs to a row, a step and a place in the order of draws, whichever process has the row; all in fp64."""

    _turn = 0

    def begin(self, batch: Any) -> Any:
        object.__setattr__(self, "_turn", 0)
        return super().begin(batch)  # type: ignore[misc]

    def fresh(self, batch: Any) -> Tensor:
        return normal(self._seeds(batch), *self.fresh_shape(batch)).double()  # type: ignore[attr-defined]

    def uniform(self, batch: Any) -> Tensor:
        return uniform(self._seeds(batch)).double()

    def _seeds(self, batch: Any) -> Tensor:
        object.__setattr__(self, "_turn", self._turn + 1)
        return seeds_for(batch["id"], self.progress.step, self._turn)


class KeyedDMD2(Keyed, DMD2):
    def setup(self) -> None:
        super().setup()
        self.double()  # the head, too


class KeyedConsistency(Keyed, Consistency):
    pass


class KeyedHalving(Keyed, Halving):
    pass


def matching(**more: Any) -> Any:
    return KeyedDMD2(gan_weight=0.3, critic_steps=2, sampling_steps=2, guidance=[1.0, 3.0], **more)


def halving() -> list[Stage]:
    made = {"first": True}, {"first": False}
    return [
        Stage(f"{n}-step", KeyedHalving(sampling_steps=n, guidance=2.0 if first["first"] else 1.0, **first))
        for n, first in zip((4, 2), made)
    ]


def consistent() -> Any:
    return KeyedConsistency(discretisation=5, ema=0.7, guidance=2.0)


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dmd2": (matching, {}),
    "dmd2 in pieces": (matching, {"micro_batch": 1}),
    "dmd2 spread": (matching, {"shard": "fsdp", "ema": 0.8}),
    "dmd2 spread, in pieces, twice": (
        matching,
        {"shard": "fsdp", "micro_batch": 2, "gradient_checkpointing": True},
    ),
    "consistency": (consistent, {}),
    "consistency spread": (consistent, {"shard": "fsdp"}),
    "progressive spread": (halving, {"shard": "fsdp"}),
}


def course(name: str, world: World, **more: Any) -> Course:
    """Four steps of 7, 7, 7 and 1 rows: in the last one the second of two processes has none."""
    make, train = VARIANTS[name]
    found = points()
    for split in found.splits.values():
        split.tensors["x"] = split.tensors["x"].double()
    torch.manual_seed(3)
    actors = Student(network(width=7).double()), Teacher(network(width=9).double())
    for actor in actors:
        actor.look_at(["x", "label", "id"])
    settings = TrainSettings(**({"epochs": 1, "batch_size": 7, "lr": 0.02, "clip": 0.5} | train | more))
    where = Situation(*actors, None, Data(found.splits, source="points"), settings, seed=4, world=world)
    random_state.seed_all(10 + world.rank)
    return Course(make(), where)


def weights_of(made: Course) -> dict[str, Tensor]:
    parts = {"student": made.situation.student.model, "method": made.methods[-1]}
    return {f"{part}.{n}": t for part, module in parts.items() for n, t in weights.take(module).items()}


def generation(world: World, folder: Path) -> dict[str, Tensor]:
    """Every variant to its end, and one that was cut off and continued."""
    found = {}
    for name in VARIANTS:
        made = course(name, world)
        made.run()
        found |= {f"{name}/{n}": t for n, t in weights_of(made).items()}
        if world.size > 1 and "spread" in name:
            critic = made.methods[-1]
            whole = [n for n, p in critic.named_parameters() if not hasattr(p, "device_mesh")]
            assert all(n.startswith("judge.") for n in whole), whole

    keep, saves = folder / f"generation-{world.size}", 0

    def store(position: int, state: dict[str, Any]) -> None:
        nonlocal saves
        saves += 1
        if saves == 3:
            checkpoint.save(keep, position, state)

    cut_off = course("dmd2 spread", world, save_every=0.0)
    cut_off.store = store
    cut_off.run()
    world.wait()
    state, _ = checkpoint.load_newest(keep)
    assert state is not None
    again = course("dmd2 spread", world)
    again.run(state)
    return found | {f"again/{n}": t for n, t in weights_of(again).items()}
