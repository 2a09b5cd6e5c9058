"""MLCM: consistency inside segments of the trajectory, then across their ends, on states of teacher and student alone (arXiv 2406.05768)."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.boundary import jump
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.solvers import ddim, sample
from limbeck.errors import RecipeError
from limbeck.losses.scores import per_sample
from limbeck.method import Batch, Card, Outcome, Play, Procedure, Progress, Stage, StageResult, Update
from limbeck.methods.dmd2 import DMD2
from limbeck.objectives import Loss
from limbeck.schedules import Scalar

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]
PAPER = "Xie et al.: TLCM (first MLCM), Training-efficient Latent Consistency Model, arXiv 2406.05768"


class OwnStates(DiffusionMethod):
    """What the stages share: M = `segments` milestones, the student's samples, the teacher's walk."""

    solver: Literal["renoise", "ddim", "heun"] = "ddim"
    segments: Annotated[int, Field(ge=1)] = 8

    def setup(self) -> None:
        super().setup()
        self.milestones = self.noise.grid(self.segments, self.start)

    def own(self, x: Values, t: Times, batch: Batch) -> Prediction:
        """The student."""
        return self.generator(x, t, self.given(batch, "student"))

    def walked(self, x: Values, t: Times, s: Times, steps: int, batch: Batch) -> Values:
        """The teacher's DDIM steps from t to s, evenly spread over the shares."""
        ways = [self.noise.at(torch.lerp(self.noise.share(t), self.noise.share(s), i / steps)) for i in range(steps)]
        for here, there in pairwise([t, *ways[1:], s]):
            x = ddim(x, self.taught(x, here, batch), self.noise, here, there)
        return x

    def sampled(self, batch: Batch) -> Values:
        """The student's samples in `sampling_steps` steps from noise."""
        x = self.noise.sigma(self.grid[0]) * self.fresh(batch)
        return sample(lambda x, t: self.own(x, t, batch), x, self.noise, self.grid)


class Segments(OwnStates):
    """Stage 1: |g(x_t, t -> e) - sg g(x_s, s -> e)|^2, e the lower end of the segment of t, s = max(t - skip, e), g a DDIM step by the student.

    x_s is the teacher's step from x_t. x_t: pure noise taken to t by the teacher in `walk` steps per segment, so in more the less
    noise there is, or noised data (`states=data`). M = 1 is consistency distillation without a target network.
    """

    card = Card(
        "mlcm-segments", summary="Stage 1 of mlcm.", paper=PAPER, needs=("prediction",), use_when="", listed=False
    )

    skip: Annotated[float, Field(gt=0, lt=1)] = 0.02
    walk: Annotated[int, Field(ge=1)] = 2
    states: Literal["teacher", "data"] = "teacher"

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        place, noise = self.shared(self.segments), self.noise
        u, eps = self.uniform(batch), self.fresh(batch)
        top, end = (m.to(u.device).expand(len(u)) for m in self.milestones[place : place + 2])
        low = torch.where(end > 0, noise.share(end), 0.0)
        share = low + (noise.share(top) - low) * (1 - u)
        t = noise.nearest(noise.at(share))
        s = torch.where(share - self.skip > low, noise.nearest(noise.at(share - self.skip)), end)
        if self.states == "data":
            x = noise.renoise(batch["x0"], t, eps)
        else:
            first = self.grid[:1].to(u.device).expand(len(u))
            x = self.walked(noise.sigma(self.grid[0]) * eps, first, t, self.walk * (place + 1), batch)
        yield Update("student", self.loss, batch | {"x": x, "time": t, "before": s, "end": end})

    def loss(self, batch: Batch) -> Loss:
        t, s, e = batch["time"], batch["before"], batch["end"]
        with torch.no_grad():
            x_s = self.walked(batch["x"], t, s, 1, batch)
            target = jump(lambda x, t: self.own(x, t, batch), x_s, s, e, self.noise)
        found = jump(lambda x, t: self.own(x, t, batch), batch["x"], t, e, self.noise)
        return Loss.mean("segments", per_sample((found - target).square()))


class Milestones(OwnStates):
    """Stage 2: |f(x_t, t) - sg f(x_s, s)|^2 for neighbouring milestones t > s; x_t the student's own samples, noised, x_s by `walk` steps of the teacher."""

    card = Card(
        "mlcm-milestones", summary="Stage 2 of mlcm.", paper=PAPER, needs=("prediction",), use_when="", listed=False
    )

    walk: Annotated[int, Field(ge=1)] = 3

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        z0 = self.sampled(batch)
        place = (self.uniform(batch) * self.segments).long()
        milestones = self.milestones.to(z0.device)
        drawn = {"time": milestones[place], "before": milestones[place + 1]}
        drawn["x"] = self.noise.renoise(z0, drawn["time"], self.fresh(batch))
        yield Update("student", self.loss, batch | drawn)

    def loss(self, batch: Batch) -> Loss:
        t, s = batch["time"], batch["before"]
        with torch.no_grad():
            x_s = self.walked(batch["x"], t, s, self.walk, batch)
            target = jump(lambda x, t: self.own(x, t, batch), x_s, s, torch.zeros_like(s), self.noise)
        return Loss.mean("milestones", per_sample((self.own(batch["x"], t, batch).x0 - target).square()))


class Matching(OwnStates, DMD2):
    """Stage 4: DMD2 on one step from the student's own samples of several, noised to a milestone; what is real to the GAN are those samples.

    The critic follows the samples of one step, as in DMD2.
    """

    card = Card(
        "mlcm-matching", summary="Stage 4 of mlcm.", paper=PAPER, needs=("prediction",), use_when="", listed=False
    )

    critic_steps: Annotated[int, Field(ge=1)] = 1
    gan_weight: Scalar = 1e-2

    def inputs(self, batch: Batch, place: int | None = None) -> Batch:
        with torch.no_grad():
            z0 = self.sampled(batch)
        t = self.milestones.to(z0.device)[(self.uniform(batch) * self.segments).long()]
        return {"x0": z0, "start": t, "input": self.noise.renoise(z0, t, self.fresh(batch))}


class MLCM(Procedure):
    """Segments for the run's budget, then Milestones and Matching for shares of it (`milestones` and `matching`, in epochs or steps; 0 leaves one out).

    Published: 12000, 2000 and 1000 steps. All states come from the teacher or the student: conditions are all the data that are needed
    (`states=data` noises data in the first stage). The student is sampled by DDIM in `sampling_steps` steps, which should divide
    `segments`, so that they lie on milestones. The preference stage of the paper (its third) is not here: it needs a judge of
    pictures. Distances are of latents as they are, not of a network's features.
    """

    card = Card(
        "mlcm",
        summary="Consistency inside segments, then across them, without data; at last distribution matching on its own samples.",
        paper=PAPER,
        needs=("prediction",),
        use_when="only conditions (prompts) are at hand, and a student of two to eight steps is wanted",
        play=Play(
            sampled="the teacher's own states, later the student's samples",
            loss="consistency to the end of a segment, then across segments, then distribution matching",
            trains="the student; in the last stage a critic and a judge",
            ratio="stages; 1 : 1 in the last",
            begins="the teacher; conditions",
        ),
        cost="first stage: the teacher's walk to a time (up to walk * segments guided steps) and its step, three passes of the student's network, one of them backward",
    )

    segments: Annotated[int, Field(ge=1)] = 8
    sampling_steps: Annotated[int, Field(ge=1)] = 4
    guidance: GuidanceOption = 8.0
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    skip: Annotated[float, Field(gt=0, lt=1)] = 0.02
    walk: Annotated[int, Field(ge=1)] = 2
    milestone_walk: Annotated[int, Field(ge=1)] = 3
    states: Literal["teacher", "data"] = "teacher"
    milestones: dict[str, Any] = {"epochs": 1}
    matching: dict[str, Any] = {"epochs": 0}

    def stages(self) -> Generator[Stage, StageResult, None]:
        if self.segments % self.sampling_steps:
            raise RecipeError(
                f"the student is to be sampled in {self.sampling_steps} steps, whose times are to be among the ends of {self.segments} segments. "
                f"Set method.sampling_steps to a divisor of method.segments."
            )
        shared = {name: getattr(self, name) for name in ("segments", "sampling_steps", "guidance", "start")}
        yield Stage("segments", Segments(**shared, skip=self.skip, walk=self.walk, states=self.states))
        if any(self.milestones.values()):
            yield Stage("milestones", Milestones(**shared, walk=self.milestone_walk), **self.milestones)
        if any(self.matching.values()):
            yield Stage("matching", Matching(**shared), **self.matching)
