"""Regression to the ends of a teacher's trajectories: noise in, what the teacher makes of it out (Luhman and Luhman 2021)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck import randomness
from limbeck.diffusion import solvers
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.noise import wide
from limbeck.losses.scores import Distance, apart
from limbeck.memories import Entries
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss
from limbeck.randomness import fold

Values = Float[Tensor, "batch ..."]


class Endpoints(DiffusionMethod):
    """E d(G(sigma_T z), sg ODE_R(sigma_T z, T -> 0)), the guided teacher's flow solved with `teacher_steps` of `teacher_solver`.

    Every training row has its own noise, which its number alone decides, and its end is computed once and remembered (rows x
    dims numbers). `distance` as in consistency. One step; the baseline that distribution matching is measured against.
    """

    card = Card(
        "endpoints",
        summary="One step learns what the teacher's whole trajectory makes of the same noise, by plain regression.",
        paper="Luhman, Luhman: Knowledge Distillation in Iterative Generative Models for Improved Sampling Speed, arXiv 2101.02388",
        needs=("prediction",),
        use_when="as a baseline; or as the first stage of a method whose student has to begin near the teacher's flow",
        play=Play(
            sampled="noise, one per row",
            loss="squared distance to the end of the teacher's flow from the same noise",
            trains="the student",
            ratio="",
            begins="the teacher; conditions",
        ),
        cost="in the first epoch the teacher's whole sampling of every row, then one forward and backward pass; rows x dims numbers of memory",
    )

    sampling_steps: Literal[1] = 1  # type: ignore[assignment]
    teacher_steps: Annotated[int, Field(ge=1)] = 20
    teacher_solver: Literal["ddim", "heun"] = "heun"
    distance: Distance = "l2"
    c: Annotated[float, Field(gt=0)] = 1e-3

    def setup(self) -> None:
        super().setup()
        shape = self.fresh_shape(self.begin(self.example()))
        self.entries = Entries.of(self.data.splits["train"])
        self.ends = nn.Buffer(torch.zeros(len(self.entries), *shape))
        self.known = nn.Buffer(torch.zeros(len(self.entries), dtype=torch.bool))

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        z = randomness.normal(fold(batch["id"], 0x65), *self.ends.shape[1:]).to(self.ends.device)
        t = self.grid[:1].to(z.device).expand(len(z)).clone()
        batch |= {"start": t, "input": wide(self.noise.sigma(t), z) * z}
        entries = self.entries(batch["id"].to(self.ends.device))
        if not bool(self.known[entries].all()):
            self.ends[entries] = self.solved(batch).to(self.ends.dtype)
            self.known[entries] = True
        yield Update("student", self.loss, batch | {"end": self.ends[entries]})

    @torch.no_grad()
    def solved(self, batch: Batch) -> Values:
        """Where the teacher's flow takes each `input`."""
        times = self.noise.grid(self.teacher_steps, self.start)
        return solvers.sample(
            lambda x, t: self.taught(x, t, batch), batch["input"], self.noise, times, self.teacher_solver
        )

    def loss(self, batch: Batch) -> Loss:
        return Loss.mean("end", apart(self.generated(batch), batch["end"], self.distance, self.c))
