"""What generators are shown, in the place of a teacher's answers: data as latents, texts as their encoders have them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

from limbeck.actors import Batch, Replace, Student, Teacher
from limbeck.data.tensors import Data
from limbeck.diffusion import encoded
from limbeck.diffusion.method import DiffusionMethod
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.recipe import Recipe
from limbeck.signals import Signals


class _Shown(DiffusionMethod):
    """Any method of generation, as far as it is shown data."""

    several: ClassVar[bool] = True


class Encoder(Teacher):
    """Gives the columns that `DiffusionMethod.shown` adds to a batch: `x0`, `student.condition` and the like.

    Its network is all the encoders, so that its fingerprint and its size are theirs.
    """

    def __init__(self, student: Student, teacher: Teacher | None, data: Data):
        actors = [student] if teacher is None else [student, *teacher.members.values()]
        super().__init__(encoded.encoders(*actors), view=student.view)
        self.told = encoded.told(*actors)
        if not any(True for _ in self.model.children()):
            raise RecipeError(
                "limbeck cache stores what generators are shown, and these see the data as they are: nothing is encoded, so there is nothing to store."
            )
        self.method = _Shown().bind(student, teacher, None)
        self.method.look_at(data)
        self.method.setup()

    def __call__(
        self,
        batch: Batch,
        *,
        replace: Replace | None = None,
        until: str | None = None,
        reads: Collection[str] | None = None,
    ) -> Signals:
        """The columns of a batch; `reads`: only these."""
        found = self.method.encoded(dict(batch))
        return Signals({name: value for name, value in found.items() if reads is None or name in reads})


def encoder(recipe: Recipe, data: Data, world: World) -> Encoder:
    """The encoders of a recipe's student and teacher, ready to be asked.

    Raises:
        RecipeError: there is no student to encode data for, or nothing is encoded.
    """
    if recipe.student is None:
        raise RecipeError(
            "of task=generation the encoded data are stored, as the student wants them, and the recipe has no student: student=..."
        )
    student, teacher = recipe.build_student(), recipe.build_teacher()
    everyone: list[Any] = [student, *(teacher.members.values() if teacher is not None else ())]
    for actor in everyone:
        actor.look_at(data.columns).check(list(data.columns), actor.whose, data.source)
        actor.model.to(world.device).eval()
    return Encoder(student, teacher, data)


def asked(recipe: Recipe, data: Data, world: World) -> Teacher | None:
    """Who fills a cache of this recipe: its teacher, or of generation its encoders."""
    return encoder(recipe, data, world) if recipe.task.use == "generation" else recipe.build_teacher()
