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
from limbeck.tasks import LANGUAGE, Task


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
            why = f"it stores no logits of the {which} split as it is"
            if getattr(member, "drawn", False):
                why = "it stores draws, which do not tell how likely a single token is; its column stays empty"
            yield f"{known}; its {task.metric} is not known, since {why}"
            continue
        seen = measure(member, once, task, time_it=False).entry
        yield f"{known}; {task.metric} {seen['metric']:.3f} on {size} {which} samples{_estimated(member, once, task)}"


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


@torch.no_grad()
def _estimated(teacher: Teacher, once: validate.Batches, task: Task) -> str:
    """What is to be said of its figures where some classes of each token are known, and the mass of the rest."""
    if not teacher.sketches or task.name not in LANGUAGE:
        return ""
    counted = missing = 0
    for batch in validate.few_at_once(teacher, once):
        own = teacher.own(batch)
        held = teacher(batch)["logits"].holds(own[task.target])
        counted, missing = counted + int(own["answer"].sum()), missing + int((own["answer"] & ~held).sum())
    if missing == 0 and not teacher.stored:
        return ""
    told = "; its figures are estimated from the classes that are stored"
    if missing == 0:
        return f"{told}, and every token is one of them"
    return f"{told}: {missing / counted:.1%} of the tokens are none of them, and count with an even share of the rest"


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
