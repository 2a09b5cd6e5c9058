"""What is said of the teachers before they teach: a wrong one shows here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from limbeck.actors import Teacher
from limbeck.data.tensors import Data
from limbeck.engine import validate
from limbeck.engine.processes import World
from limbeck.evaluation.measure import measure
from limbeck.method import Method, Procedure
from limbeck.recipe.stages import Stages
from limbeck.tasks import Task


def of(teacher: Teacher | None, data: Data, task: Task, device: torch.device) -> Iterator[str]:
    """For each teacher where it came from, its fingerprint, and its metric on some rows that nobody trains on."""
    which = "validation" if "validation" in data.splits else "train"
    split = data.splits[which]
    size = min(256, len(split))
    once = validate.batches(_First(split, size), size, World(device=device))
    for name, member in (teacher.members if teacher is not None else {}).items():
        member.model.eval()
        known = f"{_called(name)}: {member.source.describe()}; fingerprint {member.fingerprint()}"
        if not member.answers(which):
            yield f"{known}; its {task.metric} is not known, since it stores no logits of the {which} split as it is"
            continue
        seen = measure(member, once, task, time_it=False).entry
        yield f"{known}; {task.metric} {seen['metric']:.3f} on {size} {which} samples"


def untaught(teacher: Teacher | None, plan: Method | Procedure) -> list[str]:
    """A sentence for each teacher with new weights that no stage trains, as far as that can be told beforehand."""
    methods = [method for _, method, _ in plan.planned] if isinstance(plan, Stages) else [plan]
    student_only = all(isinstance(m, Method) and type(m).trainees is Method.trainees for m in methods)
    return [
        f"{_called(name)}: its weights are as {member.source.spec['model']} constructs them, and no stage trains it. Unless they are loaded there, "
        f"it has nothing to teach: {'teacher' if name == 'teacher' else f'teacher.members.{name}'}.weights=file.safetensors"
        for name, member in (teacher.members if teacher is not None and student_only else {}).items()
        if member.source.weights is None and member.source.spec is not None
    ]


def _called(name: str) -> str:
    return "teacher" if name == "teacher" else f"teacher {name}"


class _First:
    """The first rows of a split."""

    def __init__(self, split: Any, count: int):
        self.split, self.count, self.ids = split, count, split.ids[:count]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.split[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        return self.split.__getitems__(indices)
