"""Generated samples shown to judges, while they are made for the other figures and, where more are wanted, once more with new noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from limbeck.actors import Actor
from limbeck.data.tensors import Data
from limbeck.engine.processes import World
from limbeck.engine.validate import Batches
from limbeck.errors import RecipeError
from limbeck.evaluation.checks import Check, ClipScore, Fid
from limbeck.evaluation.pictures import Judge
from limbeck.signals import Signals
from limbeck.tasks import Task


class Watched:
    """A task whose judges see what its figures are computed from."""

    def __init__(self, task: Task, judges: Sequence[Judge]) -> None:
        self.task, self.judges, self.rows = task, judges, 0

    def outputs(self, signals: Signals, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Those of the task."""
        if not batch.get("ghost"):
            self.rows += len(batch["id"])
            for judge in self.judges:
                judge.see(signals["generated"], batch[self.task.target], batch)
        return self.task.outputs(signals, batch)


def judges_of(checks: Mapping[str, Check], device: torch.device) -> list[Judge]:
    """The judges that these checks ask for, loaded.

    Raises:
        RecipeError: one of them cannot be had.
    """
    found: list[Judge] = []
    for one in checks.values():
        if isinstance(one, Fid):
            from limbeck.evaluation import fid

            found.append(fid.Distance(fid.Eye(one.classifier, one.layer, device), one.samples))
        elif isinstance(one, ClipScore):
            from limbeck.evaluation import clip_score

            found.append(clip_score.Fit(clip_score.Clip(one.model, device), one.scale, one.samples))
    return found


@torch.no_grad()
def further_rounds(actor: Actor, once: Batches, watched: Watched, world: World) -> None:
    """Go over the rows again with new noise, until every judge has seen as many samples as it wants."""
    rows = int(world.sum_(torch.tensor(watched.rows, device=world.device)))
    wanted = max((judge.samples or 0 for judge in watched.judges), default=0)
    for turn in range(1, math.ceil(wanted / max(rows, 1))):
        for batch in once():
            again = batch | {"id": batch["id"] + (turn << 40)}  # what is drawn follows from the row's number
            made = actor(again)["generated"]
            for judge in watched.judges if not batch.get("ghost") else ():
                judge.see(made, None, again)


def refuse_unfit(checks: Mapping[str, Check], task: Task, data: Data, shape: Sequence[int] | None) -> None:
    """Refuse, before anything is trained, what could not be judged after it: no pictures, no prompts, a judge that is not to be had.

    Args:
        shape: that of a generated sample, as far as it is known.
    """
    asked = [name for name, one in checks.items() if isinstance(one, (Fid, ClipScore))]
    if not asked:
        return
    if task.name != "generation":
        raise RecipeError(
            f"the check {asked[0]} looks at generated pictures, and the task is {task.name}. Leave it out of evaluate."
        )
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise RecipeError(
            f"the check {asked[0]} looks at pictures of one or three channels, and the student's samples have the shape {list(shape)}. "
            "Leave it out of evaluate."
        )
    if any(isinstance(one, ClipScore) for one in checks.values()):
        from limbeck.evaluation.clip_score import texts_of

        texts_of(data.splits[next(iter(data.splits))].__getitems__([0]))
    judges_of(checks, torch.device("cpu"))
