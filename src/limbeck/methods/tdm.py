"""Trajectory distribution matching: every state of the student's own few steps has the teacher's distribution there (Luo et al. 2025)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from limbeck.diffusion.critic import CriticMethod
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import PerSample, Values
from limbeck.diffusion.noise import wide
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.times import TimeDistribution, Uniform
from limbeck.diffusion.trajectory import importance
from limbeck.losses.scores import Distance, Weighting, apart, normaliser
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update


class TDM(CriticMethod):
    """G: d(x0, sg[x0 + R_w - F]) / nu at x_t, x0 of one state of the student's own ODE trajectory, nu = mean |x0 - R_w| per sample.
    F: omega E min(SNR, 5) |F(x_t) - sg x0|^2, omega as `importance` gives it.

    Every sample has its place i among the `sampling_steps` times t_i. From x0 and eps of the student there, one DDIM step to t_{i+1}, then
    noise of the schedule itself from t_{i+1} to t in [t_{i+1}, t_i] (`separate`: every place has levels of its own) or [t_{i+1},
    start]. `distance`: `l2`, whose gradient is twice that of dmd2, or `huber`, sqrt(e^2 + c^2) - c. One update of each per step, the critic's
    first, at five times its learning rate; published: AdamW with betas (0, 0.95), start=0.9 of Stable
    Diffusion's noise (which is noise alone there; of straight lines it is not, so here it is 1). Sampled by DDIM. No data but conditions, unless `gan_weight` adds dmd2's game.
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
    critic_lr_ratio: Annotated[float, Field(gt=0)] = 5.0
    weighting: Weighting = "min-snr"
    times: ClassVar[TimeDistribution] = Uniform()  # type: ignore[misc]
    critic_times: ClassVar[TimeDistribution] = Uniform()  # type: ignore[misc]
    separate: bool = True
    distance: Distance = "huber"
    c: Annotated[float, Field(gt=0)] = 1e-3
    weighted: bool = True
    low: Annotated[float, Field(ge=0, lt=1)] = 0.02
    gap: Annotated[float, Field(ge=0, lt=1)] = 0.01

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        yield Update("critic", self.critic_loss, self.for_critic(batch, self.made(batch)))
        yield Update("student", self.student_loss, self.for_student(batch))

    def inputs(self, batch: Batch, place: int | None = None) -> Batch:
        """`input` and `start`, one of the states of the student's own trajectory per sample, and `end`, the time after it."""
        states: list[Values] = []
        states.append(self.sampled(batch, self.grid[:-1], watch=lambda x, said, following: states.append(x)))
        grid, rows = self.grid.to(states[0].device), torch.arange(len(states[0]), device=states[0].device)
        chosen = (self.uniform(batch) * self.sampling_steps).long() if place is None else torch.full_like(rows, place)
        return {"input": torch.stack(states)[chosen, rows], "start": grid[chosen], "end": grid[chosen + 1]}

    def level(self, batch: Batch, times: TimeDistribution | None = None) -> Batch:
        """`time` t >= `end` at which scores are compared, and `noise` to get there; `times` plays no part."""
        low = self.noise.share(batch["end"]).clamp(min=self.low)
        high = self.noise.share(batch["start"]) if self.separate else torch.full_like(low, self.start)
        share = low + (high - self.gap - low).clamp(min=0) * self.uniform(batch)
        t = self.noise.nearest(self.noise.at(share))
        return {"time": torch.maximum(t, batch["end"]), "noise": self.fresh(batch)}

    def direction(self, x0: Values, batch: Batch) -> Values:
        """The noise in `input`, when x0 is what it holds of data: the student's own eps."""
        x, t = batch["input"], batch["start"]
        return Prediction(x0, "x0", x, wide(self.noise.alpha(t), x), wide(self.noise.sigma(t), x)).epsilon

    def noised(self, x0: Values, batch: Batch) -> Values:
        """x_t: a DDIM step to `end`, and on to `time`."""
        mid = self.noise.renoise(x0, batch["end"], self.direction(x0, batch))
        return self.noise.further(mid, batch["end"], batch["time"], batch["noise"])

    def matching(self, x0: Values, batch: Batch) -> PerSample:
        with torch.no_grad():
            x_t = self.noised(x0, batch)
            real = self.taught(x_t, batch["time"], batch).x0
            target = x0 + (real - self.followed(x_t, batch).x0)
        return apart(x0, target, self.distance, self.c) / normaliser(x0, real).flatten()

    def following(self, x0: Values, batch: Batch) -> PerSample:
        error = super().following(x0, batch)
        if not self.weighted:
            return error
        eps = self.direction(x0, batch)
        return importance(self.noise, batch["end"], batch["time"], eps, batch["noise"]) * error
