"""Which of a teacher's signals are stored: those that the recipe names, else those that its method reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from limbeck.actors import Student, Teacher
from limbeck.data.tensors import Data
from limbeck.engine.course import settle
from limbeck.engine.processes import World
from limbeck.engine.trainer import Situation
from limbeck.engine.validate import to_device
from limbeck.errors import RecipeError, nearest
from limbeck.layers import EMBEDDING, LayerTransfer, embedding, listen
from limbeck.method import Method, Procedure, Sum, Transfer, name_of
from limbeck.recipe import Recipe
from limbeck.recipe.stages import Stages
from limbeck.tasks import Task

Paired = dict[str, list[list[str]]]


def signals(recipe: Recipe, teacher: Teacher, data: Data, world: World) -> tuple[list[str], str, Paired]:
    """The names, in the order in which the teacher gives them; why they are these; and which layers were paired.

    Of each method that proposed layers itself: the student's place, its path, and the teacher's signal. A training with
    the cache takes these pairs again, since nothing can be proposed from a network that is not there.

    Raises:
        RecipeError: a method that cannot live on stored answers, or a signal that the teacher does not give.
    """
    given = recipe.cache.signals
    split = next(iter(data.splits.values()))
    batch = to_device(split.__getitems__(list(range(min(2, len(split))))), world.device)
    why, paired = "as cache.signals says", Paired()
    if given is None and recipe.student is not None:
        student, task = recipe.build_student(), recipe.build_task(data)
        student.model.to(world.device)
        names = _read(recipe, student, teacher, task, data, world, paired)
        why = f"which {recipe.method_name()} reads"
    else:
        names = set(given or ["logits"])
        for name in names:
            embedding(teacher, batch) if name == EMBEDDING else None
        teacher.probe(batch)
        for name in names:
            listen(teacher, name)
        why = why if given else "since there is no student and no cache.signals"
    shapes = teacher.probe(batch)
    for name in names:
        if name not in shapes:
            raise RecipeError(f"cache.signals: {teacher.lacks(name)}")
    return [name for name in shapes if name in names], why, paired


def encoded(recipe: Recipe, teacher: Teacher, data: Data, world: World) -> tuple[list[str], str, Paired]:
    """The same of generators: the columns that their networks are shown, or those of them that the recipe names.

    Raises:
        RecipeError: a name that is no such column.
    """
    split = next(iter(data.splits.values()))
    there = list(teacher(to_device(split.__getitems__(list(range(min(2, len(split))))), world.device)))
    for name in recipe.cache.signals or ():
        if name not in there:
            raise RecipeError(f"cache.signals: the networks are not shown '{name}'. {nearest(name, there)}")
    given = recipe.cache.signals
    return [name for name in there if given is None or name in given], "as the networks are shown them", Paired()


def _read(
    recipe: Recipe, student: Student, teacher: Teacher, task: Task, data: Data, world: World, paired: Paired
) -> set[str]:
    found: set[str] = set()
    plan = recipe.build_plan()
    refuse_work_inside(plan)
    for method in _methods(plan):
        if isinstance(method, Method):
            settle(method, Situation(student, teacher, task, data, recipe.train, recipe.seed, world))
            learning = [member for group in method.trainees().values() for member in group]
            if any(one is member.model for one in learning for member in teacher.members.values()):
                raise RecipeError(_inside(method))
            for member in _members(method):
                if isinstance(member, LayerTransfer) and member.layers is None:
                    told = [[ours, student.paths.get(ours, ours), theirs] for ours, theirs in member.pairs]
                    paired[name_of(type(member))] = told
        found |= method.teacher_reads() if isinstance(method, Transfer) else set(method.card.needs)
    if not found:
        raise RecipeError(
            f"{recipe.method_name()} reads nothing of a teacher. Say what to store: cache.signals=[logits]"
        )
    return found


def refuse_work_inside(plan: Method | Procedure) -> None:
    """Refuse a plan that stored answers cannot serve.

    Raises:
        RecipeError: a method whose card says that it works through the teacher.
    """
    for method in _methods(plan):
        for member in _members(method):
            if hasattr(member, "card") and member.card.teacher_mode == "through":
                raise RecipeError(_inside(member))


def _members(method: Any) -> list[Any]:
    return list(method.members.values()) if isinstance(method, Sum) else [method]


def _inside(method: Method | Procedure) -> str:
    return (
        f"{name_of(type(method))} works inside the teacher (it teaches it, changes what it computes, or sends gradients through it), so "
        "stored answers do not serve it. Use a method that only reads (kd), or the teacher itself. "
        "(cache.signals=[logits] stores the logits all the same.)"
    )


def _methods(plan: Method | Procedure) -> Iterator[Any]:
    if isinstance(plan, Stages):
        for _, method, _ in plan.planned:
            yield from _methods(method)
    else:
        yield plan
