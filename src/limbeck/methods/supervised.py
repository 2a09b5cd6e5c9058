"""Learning from the labels alone: the control of every distillation, and how a teacher comes to be."""

from __future__ import annotations

from typing import Literal

from torch import nn

from limbeck.errors import RecipeError
from limbeck.method import Batch, Card, Method
from limbeck.objectives import Loss


class Supervised(Method):
    """Cross-entropy, or whatever the task says, against the data's own target.

    `who=teacher` trains the teacher (every member of a mixture, each on its own view) in the student's place.
    """

    card = Card(
        "supervised",
        summary="No teacher: the network learns the task from the labels.",
        needs=(),
        teacher_mode="none",
        use_when="as the control of a distillation, or in a stage that trains the teacher first",
    )

    who: Literal["student", "teacher"] = "student"

    def setup(self) -> None:
        if self.task is None:
            raise RecipeError("supervised learns the task; say which: task=classification")
        if self.who == "teacher" and self.teacher is None:
            raise RecipeError(
                "supervised with who=teacher trains the teacher, and there is no teacher. Give teacher=..."
            )

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        if self.who == "teacher":
            return {"student": [member.model for member in self.teacher.members.values()]}
        return super().trainees()

    def loss(self, batch: Batch) -> Loss:
        if self.who == "student":
            return self.task.loss(self.student(batch), batch)
        loss = Loss()
        for name, member in self.teacher.members.items():
            part = self.task.loss(member(batch), batch)
            loss = loss + Loss({f"task.{name}": value for value in part.parts.values()}, part.record)
        return loss

    def selects_by(self) -> Literal["metric", "loss"]:
        return "metric" if self.who == "student" else "loss"

    def selection(self, batch: Batch) -> Loss:
        return self.loss(batch)
