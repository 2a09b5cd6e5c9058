"""MLCM: consistency inside segments of the trajectory, then across their ends, on states of teacher and student alone (arXiv 2406.05768)."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.boundary import jump
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.preference import scored
from limbeck.diffusion.solvers import ddim
from limbeck.engine.pieces import rows
from limbeck.errors import RecipeError
from limbeck.losses.scores import Distance, apart
from limbeck.method import Batch, Card, Outcome, Play, Procedure, Progress, Stage, StageResult, Update
from limbeck.methods.dmd2 import DMD2
from limbeck.objectives import Loss
from limbeck.schedules import Scalar
from limbeck.sources import import_from

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]
PAPER = "Xie et al.: TLCM (first MLCM), Training-efficient Latent Consistency Model, arXiv 2406.05768"


class OwnStates(DiffusionMethod):
    """What the stages share: M = `segments` milestones, the student's samples, the teacher's walk."""

    solver: Literal["renoise", "ddim", "heun"] = "ddim"
    segments: Annotated[int, Field(ge=1)] = 8
    distance: Distance = "l2"
    c: Annotated[float, Field(gt=0)] = 1e-3

    def setup(self) -> None:
        super().setup()
        self.milestones = self.noise.grid(self.segments, self.start)

    def own(self, x: Values, t: Times, batch: Batch) -> Prediction:
        """The student."""
        return self.generator(x, t, self.given(batch, "student"))

    def walked(self, x: Values, t: Times, s: Times, steps: int, batch: Batch) -> Values:
        """The teacher's DDIM steps from t to s, evenly spread over the shares."""
        u, v = self.noise.share(t), self.noise.share(s)
        shares = [u + (v - u) * (i / steps) for i in range(1, steps)]
        for here, there in pairwise([t, *(self.noise.nearest(self.noise.at(share)) for share in shares), s]):
            x = ddim(x, self.taught(x, here, batch), self.noise, here, there)
        return x

    def joints(self, batch: Batch) -> Batch:
        """`x0`: the student's samples in `sampling_steps` steps; `x`: these noised to `time`, a milestone per sample; `before`: the next one."""
        z0, place = self.sampled(batch), (self.uniform(batch) * self.segments).long()
        t, s = (self.milestones.to(z0.device)[place + i] for i in (0, 1))
        return {"x0": z0, "time": t, "before": s, "x": self.noise.renoise(z0, t, self.fresh(batch))}


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
        return Loss.mean("segments", apart(found, target, self.distance, self.c))


class Milestones(OwnStates):
    """Stage 2: |f(x_t, t) - sg f(x_s, s)|^2 for neighbouring milestones t > s; x_t the student's own samples, noised, x_s by `walk` steps of the teacher."""

    card = Card(
        "mlcm-milestones", summary="Stage 2 of mlcm.", paper=PAPER, needs=("prediction",), use_when="", listed=False
    )

    walk: Annotated[int, Field(ge=1)] = 3

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        yield Update("student", self.loss, batch | self.joints(batch))

    def loss(self, batch: Batch) -> Loss:
        t, s = batch["time"], batch["before"]
        with torch.no_grad():
            x_s = self.walked(batch["x"], t, s, self.walk, batch)
            target = jump(lambda x, t: self.own(x, t, batch), x_s, s, torch.zeros_like(s), self.noise)
        return Loss.mean("milestones", apart(self.own(batch["x"], t, batch).x0, target, self.distance, self.c))


class Rewarding(OwnStates):
    """Stage 3: max(0, `wanted` - s) + max(0, s'), s the score of x0 = f(x_t, t), s' that of what is not wanted, where there is one; x_t as in stage 2.

    The gradient goes through x0 (decoded) into the student. `reward` is `module:function(samples, batch)`, [batch], or [batch, 2] for s and s'.
    Which samples are judged is our choice: the paper says of them only that the gradient goes through.
    """

    card = Card(
        "mlcm-rewarding", summary="Stage 3 of mlcm.", paper=PAPER, needs=("prediction",), use_when="", listed=False
    )

    judge_of: ClassVar[Any]  # the reward: no part of the method
    reward: str
    wanted: float = 16.0

    def setup(self) -> None:
        super().setup()
        object.__setattr__(self, "judge_of", import_from(self.reward, "method.reward"))
        batch = self.shown(self.example())
        with torch.enable_grad():
            x = torch.zeros(rows(batch), *self.fresh_shape(batch), device=self._device(batch), requires_grad=True)
            scores = scored(self.judge_of, self.generator.model.decoded(x), batch)
        if not scores.requires_grad or scores.shape[1] > 2:
            raise RecipeError(
                f"method.reward={self.reward} gave {list(scores.shape)} {'' if scores.requires_grad else 'without a gradient '}for {len(scores)} samples. mlcm learns through "
                "the score: let it have a gradient, and one number per sample, or two, the second of what is not wanted. (method=pso needs no gradient.)"
            )

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        yield Update("student", self.loss, batch | self.joints(batch))

    def loss(self, batch: Batch) -> Loss:
        x0 = self.own(batch["x"], batch["time"], batch).x0
        scores = scored(self.judge_of, self.generator.model.decoded(x0), batch)
        loss = Loss.mean("reward", (self.wanted - scores[:, 0]).relu())
        return loss if scores.shape[1] == 1 else loss + Loss.mean("unwanted", scores[:, 1].relu())


class Matching(OwnStates, DMD2):
    """Stage 4: DMD2 on one step from the student's own samples of several, noised to a milestone; what is real to the GAN are those samples.

    The critic follows the samples of one step, as in DMD2, whose scores are compared; in the paper's words it is tuned on those of several.
    """

    card = Card(
        "mlcm-matching", summary="Stage 4 of mlcm.", paper=PAPER, needs=("prediction",), use_when="", listed=False
    )

    judges_own: ClassVar[bool] = True
    critic_steps: Annotated[int, Field(ge=1)] = 1
    gan_weight: Scalar = 1e-2

    def inputs(self, batch: Batch, place: int | None = None) -> Batch:
        found = self.joints(batch)
        return {"x0": found["x0"], "start": found["time"], "input": found["x"]}


class MLCM(Procedure):
    """Segments for the run's budget, then Milestones, Rewarding (with a `reward`) and Matching for shares of it (`milestones`, `rewarding` and `matching`,
    in epochs or steps; 0 leaves one out).

    Published: 12000, 2000, 500 and 1000 steps, at a tenth of the first rate after the first (milestones={epochs: 1, train: {lr: 1e-5}}). All
    states come from the teacher or the student: conditions are all the data that are needed (`states=data` noises data in the first stage). The
    student is sampled by DDIM in `sampling_steps` steps, which should divide `segments`, so that they lie on milestones. `reward`:
    `module:function(samples, batch)`, see Rewarding; the paper's is a model of human preference, whose scores should reach 16 (`wanted`). Distances
    are of latents as they are, not of a network's features.
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
    distance: Distance = "l2"
    c: Annotated[float, Field(gt=0)] = 1e-3
    milestones: dict[str, Any] = {"epochs": 1}
    reward: str | None = None
    wanted: float = 16.0
    rewarding: dict[str, Any] = {"epochs": 1}
    matching: dict[str, Any] = {"epochs": 0}

    def stages(self) -> Generator[Stage, StageResult, None]:
        if self.segments % self.sampling_steps:
            raise RecipeError(
                f"the student is to be sampled in {self.sampling_steps} steps, whose times are to be among the ends of {self.segments} segments. "
                f"Set method.sampling_steps to a divisor of method.segments."
            )
        names = ("segments", "sampling_steps", "guidance", "start", "distance", "c")
        shared = {name: getattr(self, name) for name in names}
        yield Stage("segments", Segments(**shared, skip=self.skip, walk=self.walk, states=self.states))
        if any(self.milestones.values()):
            yield Stage("milestones", Milestones(**shared, walk=self.milestone_walk), **self.milestones)
        if self.reward and any(self.rewarding.values()):
            yield Stage("rewarding", Rewarding(**shared, reward=self.reward, wanted=self.wanted), **self.rewarding)
        if any(self.matching.values()):
            yield Stage("matching", Matching(**shared), **self.matching)
