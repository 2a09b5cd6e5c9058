"""Consistency distillation: every point of a teacher's trajectory is taken to the same end (Song et al. 2023)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.noise import wide
from limbeck.diffusion.solvers import ddim, heun
from limbeck.losses.scores import Distance, apart
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]


class Consistency(DiffusionMethod):
    """E d(f(x_t, t), sg f_target(x_s, s)), x_s the teacher's guided step from x_t, over neighbours t > s of a grid of times.

    f is the student's denoiser, and f(x, 0) = x: at the end of a trajectory the target is the point itself. `ema` is the
    decay of the target network (0: the student as it stands). `distance`: `l2`, the mean square, or `huber`,
    mean sqrt(e^2 + c^2) - c. One of `discretisation` intervals is drawn per sample. Sampled with `renoise`, in any number
    of steps. Data-free use: none; x_t are noised data.
    """

    card = Card(
        "consistency",
        summary="The student takes every point of the teacher's trajectory to its end, in one step.",
        paper="Song, Dhariwal, Chen, Sutskever: Consistency Models, ICML 2023, arXiv 2303.01469; Luo et al.: Latent Consistency Models, arXiv 2310.04378",
        needs=("prediction",),
        use_when="data are at hand, the teacher can be solved as an ODE, and one model shall serve any number of steps",
        play=Play(
            sampled="data, noised to a time of a grid",
            loss="distance to where the target network takes the teacher's next step",
            trains="the student; a moving average is the target",
            ratio="",
            begins="the teacher; data",
        ),
        cost="the teacher's step (two evaluations with guidance or heun, four with both), the target's forward pass, one forward and backward pass",
    )

    discretisation: Annotated[int, Field(ge=1)] = 50
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.95
    distance: Distance = "l2"
    c: Annotated[float, Field(gt=0)] = 1e-3
    teacher_solver: Literal["ddim", "heun"] = "ddim"

    def setup(self) -> None:
        super().setup()
        if self.ema:
            self.make_target()

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        fine = self.noise.grid(self.discretisation, self.start).to(batch["x0"].device)
        interval = (self.uniform(batch) * (len(fine) - 1)).long()
        batch |= {"noise": self.fresh(batch), "time": fine[interval], "before": fine[interval + 1]}
        yield Update("student", self.loss, batch)
        if self.ema:
            self.follow(self.ema)

    def loss(self, batch: Batch) -> Loss:
        return Loss.mean("consistency", apart(self.ended(batch), self.aim(batch), self.distance, self.c))

    def noised(self, batch: Batch) -> Values:
        """x_t."""
        return self.noise.renoise(batch["x0"], batch["time"], batch["noise"])

    def ended(self, batch: Batch) -> Values:
        """f(x_t, t)."""
        return self.generator(self.noised(batch), batch["time"], self.given(batch, "student")).x0

    @torch.no_grad()
    def aim(self, batch: Batch) -> Values:
        """f_target(x_s, s)."""
        t, s = batch["time"], batch["before"]
        return self.end(self.step(self.noised(batch), t, s, batch), s, batch)

    def step(self, x: Values, t: Times, s: Times, batch: Batch) -> Values:
        """The teacher's step from t to s."""
        said = self.taught(x, t, batch)
        if self.teacher_solver == "heun":
            return heun(x, said, self.noise, t, s, lambda x, t: self.taught(x, t, batch))
        return ddim(x, said, self.noise, t, s)

    def end(self, x: Values, s: Times, batch: Batch) -> Values:
        """Where the target network takes x_s; x itself where s = 0."""
        follower = self.follower if self.ema else self.generator
        at = torch.where(s > 0, s, self.noise.first)
        return torch.where(wide(s, x) > 0, follower(x, at, self.given(batch, "student")).x0, x)
