"""Trajectory distribution matching: every state of the student's own few steps has the teacher's distribution there (Luo et al. 2025)."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import DiffusionMethod, Values
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.solvers import ddim
from limbeck.diffusion.trajectory import importance
from limbeck.losses.scores import Weighting, normaliser, per_sample, pseudo_huber
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss


class TDM(DiffusionMethod):
    """G: d(x0, sg[x0 + R_w - F]) / nu at x_t, x0 of one state of the student's own ODE trajectory, nu = mean |x0 - R_w| per sample.
    F: omega E min(SNR, 5) |F(x_t) - sg x0|^2, omega as `importance` gives it.

    Every sample has its place i among the `sampling_steps` times t_i. From x0 and eps of the student there, one DDIM step to t_{i+1}, then
    noise of the schedule itself from t_{i+1} to t in [t_{i+1}, t_i] (`separate`: every place has levels of its own) or [t_{i+1},
    start]. `distance`: `l2`, whose gradient is twice that of dmd2, or `huber`, sqrt(e^2 + c^2) - c. One update of each per step, the critic's
    first; published: the critic's rate five times the student's (train.trainees). Sampled by DDIM. No data but conditions.
    """

    card = Card(
        "tdm",
        summary="A few-step generator that samples without fresh noise: each of its own states is matched to the teacher's, without data.",
        paper="Luo et al.: Learning Few-Step Diffusion Models by Trajectory Distribution Matching, ICCV 2025, arXiv 2503.06674",
        needs=("prediction",),
        use_when="two to four steps are allowed, samples shall follow from their noise alone, and there are prompts or classes but no data",
        play=Play(
            sampled="states of the student's own trajectory",
            loss="distance to sg[x0 + (R - F) / nu] inside a segment of times",
            trains="the student, the critic F",
            ratio="1 : 1, the critic first",
            begins="the teacher; conditions",
        ),
        cost="per step the student's trajectory without a graph and one pass with, a pass of the teacher (two with guidance), two of the critic; memory for a third network",
    )

    sampling_steps: Annotated[int, Field(ge=1)] = 4
    solver: Literal["ddim"] = "ddim"  # type: ignore[assignment]
    guidance: GuidanceOption = 4.5
    weighting: Weighting = "min-snr"
    critic_lora: Annotated[int, Field(ge=1)] | None = None
    separate: bool = True
    distance: Literal["l2", "huber"] = "huber"
    c: Annotated[float, Field(gt=0)] = 1e-3
    weighted: bool = True
    low: Annotated[float, Field(ge=0, lt=1)] = 0.02
    gap: Annotated[float, Field(ge=0, lt=1)] = 0.01

    def setup(self) -> None:
        super().setup()
        self.make_critic(self.critic_lora)

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return super().trainees() | {"critic": [self.critic]}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        made = self.said(batch)
        drawn = self.level(batch) | {"generated": made.x0, "direction": made.epsilon}
        yield Update("critic", self.critic_loss, batch | drawn)
        yield Update("student", self.student_loss, batch | self.level(batch))

    def inputs(self, batch: Batch, place: int | None = None) -> Batch:
        """`input` and `start`, one of the states of the student's own trajectory per sample, and `end`, the time after it."""
        grid, x = self.grid.to(self._device(batch)), self.noise.sigma(self.grid[0]) * self.fresh(batch)
        chosen = (
            self.uniform(batch) * self.sampling_steps
            if place is None
            else torch.full((len(x),), place, device=grid.device)
        ).long()
        states = [x]
        with torch.no_grad():
            for here, there in pairwise(grid[:-1]):
                t, s = here.expand(len(x)), there.expand(len(x))
                said = self.generator(states[-1], t, self.given(batch, "student"))
                states.append(ddim(states[-1], said, self.noise, t, s))
        x = torch.stack(states)[chosen, torch.arange(len(x), device=grid.device)]
        return {"input": x, "start": grid[chosen], "end": grid[chosen + 1]}

    def level(self, batch: Batch) -> Batch:
        """`time` t >= `end` at which scores are compared, and `noise` to get there."""
        low = self.noise.share(batch["end"]).clamp(min=self.low)
        high = self.noise.share(batch["start"]) if self.separate else torch.full_like(low, self.start)
        share = low + (high - self.gap - low).clamp(min=0) * self.uniform(batch)
        t = self.noise.nearest(self.noise.at(share))
        return {"time": torch.maximum(t, batch["end"]), "noise": self.fresh(batch)}

    def said(self, batch: Batch) -> Prediction:
        """The student at `input`."""
        return self.generator(batch["input"], batch["start"], self.given(batch, "student"))

    def noised(self, x0: Values, eps: Values, batch: Batch) -> Tensor:
        """x_t: a DDIM step to `end`, and on to `time`."""
        mid = self.noise.renoise(x0, batch["end"], eps)
        return self.noise.further(mid, batch["end"], batch["time"], batch["noise"])

    def student_loss(self, batch: Batch) -> Loss:
        made, t = self.said(batch), batch["time"]
        x0 = made.x0
        with torch.no_grad():
            x_t = self.noised(x0, made.epsilon, batch)
            real = self.taught(x_t, t, batch).x0
            target = x0 + (real - self.fake(x_t, t, self.given(batch, "critic")).x0)
        apart = pseudo_huber(x0, target, c=self.c) if self.distance == "huber" else per_sample((x0 - target).square())
        return Loss.mean("matching", apart / normaliser(x0, real).flatten())

    def critic_loss(self, batch: Batch) -> Loss:
        x0, eps, t = batch["generated"], batch["direction"], batch["time"]
        said = self.fake(self.noised(x0, eps, batch), t, self.given(batch, "critic"))
        omega = importance(self.noise, batch["end"], t, eps, batch["noise"]) if self.weighted else 1.0
        return Loss.mean("denoising", omega * self.error(said, x0, t))
