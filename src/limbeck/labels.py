"""Two label sets side by side: which class of the teacher is which class of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError


@dataclass(frozen=True)
class LabelMatch:
    """How to bring teacher and student logits to the classes that both know.

    `student` are the student's classes that take part; `groups[i]` the teacher's classes that mean the i-th of them.
    Dropping a class means conditioning on the others (a softmax over the rest). Several classes of the teacher that mean one of the
    student are joined as probabilities: log-sum-exp of their logits.
    """

    student: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    def of_student(
        self, logits: Float[Tensor, "batch classes ..."], dim: int = -1
    ) -> Float[Tensor, "batch shared ..."]:
        """The student's logits of the shared classes."""
        return logits.index_select(dim, torch.tensor(self.student, device=logits.device))

    def of_teacher(
        self, logits: Float[Tensor, "batch classes ..."], dim: int = -1
    ) -> Float[Tensor, "batch shared ..."]:
        """The teacher's logits of the shared classes, in the student's order."""
        if all(len(group) == 1 for group in self.groups):
            return logits.index_select(dim, torch.tensor([g[0] for g in self.groups], device=logits.device))
        joined = [
            torch.logsumexp(logits.index_select(dim, torch.tensor(group, device=logits.device)), dim, keepdim=True)
            for group in self.groups
        ]
        return torch.cat(joined, dim)

    def of_target(self, target: Int64[Tensor, "batch ..."], classes: int) -> Int64[Tensor, "batch ..."]:
        """Labels among the student's `classes` as places among the shared ones; -1 where there is none."""
        places = torch.full((classes,), -1, device=target.device)
        places[torch.tensor(self.student, device=target.device)] = torch.arange(len(self.student), device=target.device)
        return torch.where(target >= 0, places[target.clamp(min=0)], -1)


def match(
    student: Sequence[str], teacher: Sequence[str], label_map: str | Mapping[str, str] = "name"
) -> LabelMatch | None:
    """Match two label sets; None when they are the same in the same order.

    Args:
        student, teacher: class names in the order of the logits.
        label_map: `name`, or `{teacher's name: student's name}` for those that differ (several may go to one).

    Raises:
        RecipeError: fewer than two classes in common; both sets are listed.
    """
    mapping = {} if isinstance(label_map, str) else dict(label_map)
    unknown = [name for name in mapping if name not in teacher] + [
        name for name in mapping.values() if name not in student
    ]
    if unknown:
        raise RecipeError(f"label_map names {', '.join(unknown)}, which neither side has. {_both(student, teacher)}")
    groups: dict[str, list[int]] = {}
    for position, name in enumerate(teacher):
        groups.setdefault(mapping.get(name, name), []).append(position)
    shared = [i for i, name in enumerate(student) if name in groups]
    if len(shared) < 2:
        raise RecipeError(
            f"teacher and student share {len(shared)} labels; distilling logits needs at least two. {_both(student, teacher)} "
            "Give teacher.label_map={teacher's name: student's name}."
        )
    found = LabelMatch(tuple(shared), tuple(tuple(groups[student[i]]) for i in shared))
    same = found.student == tuple(range(len(student))) and found.groups == tuple((i,) for i in range(len(teacher)))
    return None if same else found


def _both(student: Sequence[str], teacher: Sequence[str]) -> str:
    return f"Student: {', '.join(student[:20])}. Teacher: {', '.join(teacher[:20])}."
