"""What every strain test shares: small data and networks, and the proof that a method survives being killed.

`survives(factory, folder)` runs a course to its end; then again and again, cut off at other places; each time everything
is built anew, its weights scrambled, the newest checkpoint loaded, and the run finished. All must end in the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.actors import Student, Teacher
from limbeck.data.loader import Loader
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import checkpoint, random_state
from limbeck.engine.course import Course
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.tasks import Task

Factory = Callable[[], tuple[Any, Situation]]
PLAIN = {"optimizer": "sgd", "schedule": "constant", "clip": None, "weight_decay": 0.0, "lr": 0.1, "select": "last"}
"""Settings under which an update is p <- p - 0.1 gradient, so that a loop can be written beside it."""


class Net(nn.Module):
    """Three layers; takes any columns, side by side."""

    def __init__(self, width: int, classes: int = 3, hidden: int = 7, dropout: float = 0.0):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, 5)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(5, classes)

    def forward(self, *columns: Tensor) -> Tensor:
        return self.out(self.drop(torch.relu(self.fc2(torch.relu(self.fc1(torch.cat(columns, 1)))))))


def rows(count: int, first: int, seed: int) -> TensorSplit:
    """Rows of two modalities, `x` (6 numbers) and `a` (4), of three classes."""
    g = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (count,), generator=g)
    x = torch.randn(count, 6, generator=g) + 2 * torch.eye(6)[label]
    a = torch.randn(count, 4, generator=g) + 3 * torch.eye(4)[label]
    return TensorSplit({"x": x, "a": a, "label": label}, first)


def toy(train: int = 22, **columns: Tensor) -> Data:
    """22 training rows (steps of 8, 8 and 6 at the settings below), 12 for validation; `columns` join the training rows."""
    splits = {"train": rows(train, 0, 1), "validation": rows(12, 500, 2), "test": rows(12, 600, 3)}
    splits["train"].tensors |= columns
    return Data(splits, {"x": "", "a": "", "label": ""}, {"label": ["ash", "beech", "cedar"]}, source="toy")


def situation(student: Student, teacher: Teacher | None = None, *, data: Data | None = None, **train: Any) -> Situation:
    """Two epochs of three steps on the toy data, unless `train` says otherwise."""
    settings = TrainSettings(**({"epochs": 2, "batch_size": 8} | train))
    return Situation(student, teacher, Task("classification"), data or toy(), settings, seed=5)


def steps(where: Situation, epochs: int = 2) -> Iterator[dict[str, Any]]:
    """The batches that the engine will see, for a loop written by hand."""
    split, size = where.data.splits["train"], where.settings.batch_size
    loader = Loader(split, size, seed=where.seed, shuffle=True)
    for epoch in range(epochs):
        yield from loader.epoch(epoch)


def finish(factory: Factory) -> Course:
    """Build everything and run to the end, undisturbed."""
    plan, where = fresh(factory)
    course = Course(plan, where)
    course.run()
    return course


def survives(factory: Factory, folder: Path) -> Course:
    """The finished course, after it was shown that cut-off and continued ones end in the same bits."""
    course = finish(factory)
    expected, saves = bits(course), _saves(factory)
    between = [i for i, stage in enumerate(saves) if stage is None]
    inside = [i for i, stage in enumerate(saves) if stage is not None]
    places = {inside[0], inside[len(inside) // 2], inside[-1], *between} if inside else set(between)
    for number, place in enumerate(sorted(places)):
        here = folder / f"cut-{place}"
        _cut_off(factory, here, save=place, die=place + number % 2)  # at once, or a step after what was saved
        found = bits(_go_on(factory, here))
        assert found.keys() == expected.keys()
        different = [name for name in expected if not _same(found[name], expected[name])]
        assert not different, (
            f"cut off at save {place} of {len(saves)} ({saves[place]}), then other bits in {different}"
        )
    return course


def bits(course: Course) -> dict[str, Any]:
    """Everything that a run leaves: student, teachers, methods of all stages, results."""
    where = course.situation
    found: dict[str, Any] = {f"student.{n}": t for n, t in where.student.model.state_dict().items()}
    for name, member in (where.teacher.members if where.teacher else {}).items():
        found |= {f"teacher.{name}.{n}": t for n, t in member.model.state_dict().items()}
    for i, method in enumerate(course.methods):
        found |= {f"method.{i}.{n}": t for n, t in method.state_dict().items()}
    for i, result in enumerate(course.results):
        found |= {f"result.{i}.{n}": v for n, v in vars(result).items() if n != "seconds"}
    return found


class Killed(BaseException):
    """The process is gone."""


def fresh(factory: Factory) -> tuple[Any, Situation]:
    """What the factory builds, with the random numbers that every run here begins with."""
    random_state.seed_all(0)
    plan, where = factory()
    random_state.seed_all(1)
    return plan, where


def _saving(factory: Factory) -> tuple[Any, Situation]:
    plan, where = fresh(factory)
    where.settings = where.settings.model_copy(update={"save_every": 0.0})
    return plan, where


def _saves(factory: Factory) -> list[int | None]:
    """At every save of a run, the step inside the stage; None between two stages."""
    seen: list[int | None] = []
    plan, where = _saving(factory)
    Course(plan, where, store=lambda _, state: seen.append(state["stage"] and state["stage"]["step"])).run()
    return seen


def _cut_off(factory: Factory, folder: Path, *, save: int, die: int) -> None:
    calls = 0

    def store(position: int, state: dict[str, Any]) -> None:
        nonlocal calls
        if calls == save:
            checkpoint.save(folder, position, state)
        if calls == die:
            raise Killed
        calls += 1

    plan, where = _saving(factory)
    try:
        Course(plan, where, store=store).run()
    except Killed:
        return
    assert die > save, "the run ended before it could be killed"


def _go_on(factory: Factory, folder: Path) -> Course:
    plan, where = fresh(factory)
    random_state.seed_all(77)
    with torch.no_grad():
        for tensor in where.student.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor))
    state, said = checkpoint.load_newest(folder)
    assert state is not None
    assert not said
    course = Course(plan, where)
    course.run(state)
    return course


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
