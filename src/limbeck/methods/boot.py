"""BOOT: the student knows noise and a time alone, and bootstraps along the teacher's trajectory, without data (Gu et al. 2023)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.further import give
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.noise import Noise, wide
from limbeck.diffusion.times import TimesOption, Uniform
from limbeck.errors import RecipeError
from limbeck.losses.scores import per_sample
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]


def kept(noise: Noise, t: Times, s: Times) -> Times:
    """kappa = sigma_s alpha_t / (sigma_t alpha_s) in [0, 1] for s <= t: how much of the signal at t is left at s."""
    return noise.sigma(s) * noise.alpha(t) / (noise.sigma(t) * noise.alpha(s))


def signal(y: Values, x0: Values, noise: Noise, t: Times, s: Times) -> Values:
    """y_s = y_t + (1 - kappa) (x0 - y_t): the DDIM step in y = (x - sigma eps) / alpha, exact, x0 the denoised alpha_t y_t + sigma_t eps."""
    return y + wide(1 - kept(noise, t, s), y) * (x0 - y)


class BOOT(DiffusionMethod):
    """E |Y(eps, s) - sg[y + (1 - kappa) (R_w(alpha_t y + sigma_t eps, t) - y)]|^2 / (1 - kappa)^2 + boundary_weight E |Y(eps, T) - R_w(sigma_T eps, T)|^2.

    y = sg Y(eps, t), s = t - `step` (a share of the noise), kappa as `kept`. Y is the student at the noisiest time, and is told the
    time to arrive at as a further number, whose embedding begins at zero: a student that begins as the teacher begins at the
    boundary, at every time. (The paper gives that time in the place of the network's own.) Sampled, it arrives at no noise in one step. The
    division by (1 - kappa)^2, for flows by (4 step / (1 + step)^2)^2 at least, is that of a re-implementation; the paper's is by step^2. t runs from one
    step above no noise to `start`; `times` say how (errors add up from the noisiest time on, so rather more than fewer of the noisy ones).
    """

    card = Card(
        "boot",
        summary="One step without data: the student's own point of the teacher's trajectory, a step further, is what it learns.",
        paper="Gu, Zhai, Zhang, Liu, Susskind: BOOT, Data-free Distillation of Denoising Diffusion Models with Bootstrapping, arXiv 2306.05544",
        needs=("prediction",),
        use_when="there are no data but conditions, and neither a critic nor a stored trajectory is wanted",
        play=Play(
            sampled="noise and a time to arrive at",
            loss="squared distance to the student's own point, one step of the teacher further",
            trains="the student",
            ratio="",
            begins="the teacher; conditions",
        ),
        cost="two of the teacher's evaluations (four with guidance), three of the student's, two of them with a gradient",
    )

    sampling_steps: Literal[1] = 1  # type: ignore[assignment]
    step: Annotated[float, Field(gt=0, lt=1)] = 1 / 64
    boundary_weight: Annotated[float, Field(ge=0)] = 1.0
    times: TimesOption = Uniform()
    place: str | None = None

    def setup(self) -> None:
        if self.step >= self.start:
            raise RecipeError(
                f"boot.step is {self.step:g}, and the noise begins at a share of {self.start:g}: a step must lie inside. Set method.step to {self.start / 64:g}."
            )
        give(self.student, {"until": 0.0}, self.place)
        super().setup()

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        share = self.step + (self.start - self.step) * self.noise.share(self.drawn(batch)).clamp(0, 1)
        batch |= {"noise": self.fresh(batch), "time": self.noise.nearest(self.noise.at(share))}
        yield Update("student", self.loss, batch)

    def loss(self, batch: Batch) -> Loss:
        t, eps = batch["time"], batch["noise"]
        share = self.noise.share(t)
        after = (share - self.step).clamp(min=0)
        s = torch.where(after > 0, self.noise.at(after), 0.0)
        with torch.no_grad():
            y = self.arriving(share, batch)
            target = signal(y, self.taught(self.noise.renoise(y, t, eps), t, batch).x0, self.noise, t, s)
        scale = (1 - kept(self.noise, t, s)).square()
        loss = Loss.mean("bootstrap", per_sample((self.arriving(after, batch) - target).square()) / scale)
        first, x = self.beginning(batch)
        with torch.no_grad():
            begun = self.taught(x, first, batch).x0
        there = self.arriving(self.noise.share(first), batch)
        return loss + self.boundary_weight * Loss.mean("boundary", per_sample((there - begun).square()))

    def beginning(self, batch: Batch) -> tuple[Times, Values]:
        """The noisiest time, and noise of its size."""
        t = self.grid[:1].to(batch["time"]).expand(len(batch["time"]))
        return t, wide(self.noise.sigma(t), batch["noise"]) * batch["noise"]

    def arriving(self, share: Times, batch: Batch) -> Values:
        """Y(eps, t): the student's signal at this share of the noise."""
        t, x = self.beginning(batch)
        return self.generator(x, t, self.given(batch, "student"), until=share).x0
