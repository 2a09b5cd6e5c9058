"""Deep mutual learning (Zhang, Xiang, Hospedales and Lu 2018, arXiv 1706.00384)."""

from __future__ import annotations

import copy
from collections.abc import Generator
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from limbeck.actors import Student
from limbeck.errors import RecipeError
from limbeck.layers import on_device
from limbeck.losses import kl, reverse_kl
from limbeck.method import Batch, Card, Method, Outcome, Progress, Update
from limbeck.objectives import Loss
from limbeck.schedules import Scalar, to_schedule


class DML(Method):
    """Network k learns task_weight * task + weight * mean over the others j of KL(p_j || p_k) (equations 3 to 10).

    No gradient enters p_j. `symmetric` adds the other direction, (KL(p_j || p_k) + KL(p_k || p_j)) / 2. `sequential`, as
    published: each network hears what the others say after their own steps; `simultaneous`: all hear what was said
    before any. The student is network 0 and is what ships; every network has an optimiser of its own (`train.trainees`).

    `peers` is how many further networks like the student's there are, each drawn anew; or a list of models, written as
    the recipe's student is (`module:attribute`, a path, or `{model, args, view, taps, weights}`).
    """

    card = Card(
        "dml",
        summary="Several students learn the labels and each other's opinions; no teacher.",
        paper="Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, arXiv 1706.00384",
        needs=(),
        teacher_mode="none",
        use_when="no teacher at hand, and memory for two networks while training",
        cost="per network a step of its own, and a forward pass of each other network",
    )

    peers: Annotated[int, Field(ge=1)] | list[str | dict[str, Any]] = 1
    order: Literal["sequential", "simultaneous"] = "sequential"
    symmetric: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0
    weight: Scalar = 1.0
    task_weight: Scalar = 1.0

    def setup(self) -> None:
        listed = [None] * self.peers if isinstance(self.peers, int) else self.peers
        if not listed:
            raise RecipeError("dml.peers is an empty list; a network cannot learn from itself alone. Give peers=1.")
        others = [self._alike() if given is None else self._given(given) for given in listed]
        self.networks = nn.ModuleList(actor.model for actor in others)
        self.everyone = {"student": self.student} | {f"peer{i}": actor for i, actor in enumerate(others, 1)}
        split = self.data.splits["train"]
        probe = on_device(self.student, split.__getitems__(list(range(min(2, len(split))))))
        for name, actor in self.everyone.items():
            shape = actor.probe(probe).get("logits")
            if shape != self.student.shapes.get("logits"):
                raise RecipeError(
                    f"dml: {name} gives logits of shape {list(shape or ())} per sample, the student {list(self.student.shapes['logits'])}; "
                    "peers need the same classes."
                )

    def _alike(self) -> Student:
        model = copy.deepcopy(self.student.model)
        kept = draw_anew(model)
        if kept:
            self.notices.append(
                f"dml: a peer begins with the student's own {', '.join(kept[:5])}, which cannot be drawn anew."
            )
        return Student(model, view=self.student.view, taps=self.student.paths)

    def _given(self, given: str | dict[str, Any]) -> Student:
        actor = Student(**({"view": self.student.view} | (given if isinstance(given, dict) else {"model": given})))
        actor.model.to(next((p.device for p in self.student.model.parameters()), torch.device("cpu")))
        return actor

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {name: [actor.model] for name, actor in self.everyone.items()}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        said = (
            {name: actor(batch)["logits"] for name, actor in self.everyone.items()}
            if self.order == "simultaneous"
            else {}
        )
        for name in self.everyone:
            heard = [
                said[other] if said else actor(batch)["logits"]
                for other, actor in self.everyone.items()
                if other != name
            ]
            yield Update(name, partial(self.among, name), batch | {"dml_others": torch.stack(heard, 1)})

    def among(self, name: str, batch: Batch) -> Loss:
        """What one network learns, given what the others say: `dml_others` [batch, others, classes, ...]."""
        signals, others = self.everyone[name](batch), batch["dml_others"]
        ours = signals["logits"].unsqueeze(1).expand_as(others)
        apart = partial(kl, temperature=self.temperature, scale=False, dim=2)
        back = partial(reverse_kl, temperature=self.temperature, scale=False, dim=2)
        values = (apart(ours, others) + back(ours, others)) / 2 if self.symmetric else apart(ours, others)
        loss = to_schedule(self.weight)(self.progress) * Loss.mean("mutual", values)
        return loss + to_schedule(self.task_weight)(self.progress) * self.task.loss(signals, batch)


def draw_anew(model: nn.Module) -> list[str]:
    """Give all layers of a network new random weights, in place; names the parameters for which none are known."""
    known: set[int] = set()
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            known |= {id(p) for p in module.parameters()}
    return [name for name, p in model.named_parameters() if id(p) not in known]
