"""Progressive distillation: one step of the student does what two of its predecessor did, again and again (Salimans and Ho 2022)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from pydantic import Field

from limbeck.diffusion.boundary import landing
from limbeck.diffusion.denoiser import Denoiser, copied
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.solvers import ddim
from limbeck.errors import RecipeError
from limbeck.losses.scores import Weighting
from limbeck.method import Batch, Card, Outcome, Play, Procedure, Progress, Stage, StageResult, Update
from limbeck.objectives import Loss


class Halving(DiffusionMethod):
    """E w(t) |D(x_t, t) - x~|^2, x~ what makes one DDIM step t -> s land where two of the predecessor land, by way of the middle.

    t is one of the `sampling_steps` times, x_t noised data. The predecessor is the (guided) teacher, or with `first=false` the
    student as it comes into this stage. `weighting` v is SNR + 1.
    """

    card = Card(
        "halving",
        summary="One round of progressive: a student of N steps follows a predecessor of 2 N.",
        paper="Salimans, Ho: Progressive Distillation for Fast Sampling of Diffusion Models, ICLR 2022, arXiv 2202.00512",
        needs=("prediction",),
        listed=False,
    )

    solver: Literal["renoise", "ddim", "heun"] = "ddim"
    weighting: Weighting = "v"
    first: bool = True

    def setup(self) -> None:
        super().setup()
        finer = self.noise.grid(2 * self.sampling_steps, self.start)[::2]
        if not torch.allclose(finer, self.grid):
            raise RecipeError(
                f"progressive halves a grid of times, and of {type(self.noise).__name__} noise every other time of a grid of "
                f"{2 * self.sampling_steps} steps is none of {self.sampling_steps}. Give the student vp or flow noise."
            )
        assert self.reference is not None
        self.before: Denoiser = self.reference
        if not self.first:
            actor = copied(self.student)
            self.predecessor = actor.model
            self.before = Denoiser(actor, self.noise)

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        grid = self.grid.to(batch["x0"].device)
        place = (self.uniform(batch) * self.sampling_steps).long()
        batch |= {"noise": self.fresh(batch), "time": grid[place], "to": grid[place + 1]}
        yield Update("student", self.loss, batch)

    def loss(self, batch: Batch) -> Loss:
        t, s = batch["time"], batch["to"]
        middle = self.noise.at((self.noise.share(t) + self.noise.share(s)) / 2)
        x = x_t = self.noise.renoise(batch["x0"], t, batch["noise"])
        whose, guidance = ("teacher", batch.get("guidance")) if self.first else ("student", None)
        with torch.no_grad():
            for here, there in ((t, middle), (middle, s)):
                said = self.before(x, here, self.given(batch, whose), guidance=guidance)
                x = ddim(x, said, self.noise, here, there)
            target = landing(x_t, x, self.noise, t, s)
        return Loss.mean("halving", self.error(self.generator(x_t, t, self.given(batch, "student")), target, t))


class Progressive(Procedure):
    """Rounds of N = `first_steps`, N / 2, ..., `sampling_steps` steps, the run's budget each: after a round the student is the next one's teacher.

    The first round follows 2 N steps of the teacher, guided, and so takes the guidance in. Sampled without noise (DDIM).
    """

    card = Card(
        "progressive",
        summary="The student's steps are halved round by round: one does what two did before.",
        paper="Salimans, Ho: Progressive Distillation for Fast Sampling of Diffusion Models, ICLR 2022, arXiv 2202.00512; Meng et al.: On Distillation of Guided Diffusion Models, CVPR 2023",
        needs=("prediction",),
        use_when="data are at hand and a deterministic sampler of few steps is wanted; no critic, no discriminator, nothing to balance",
        play=Play(
            sampled="data, noised to a time of the student's",
            loss="squared error against where two steps of the predecessor land",
            trains="the student",
            ratio="rounds of half the steps",
            begins="the teacher; data",
        ),
        cost="per round the predecessor's two steps (four evaluations with guidance, in the first), one forward and backward pass; log2(first_steps / sampling_steps) + 1 rounds",
    )

    first_steps: Annotated[int, Field(ge=1)] = 8
    sampling_steps: Annotated[int, Field(ge=1)] = 1
    guidance: GuidanceOption = 1.0
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    weighting: Weighting = "v"

    def stages(self) -> Generator[Stage, StageResult, None]:
        rounds = [self.first_steps]
        while rounds[-1] > self.sampling_steps and rounds[-1] % 2 == 0:
            rounds.append(rounds[-1] // 2)
        if rounds[-1] != self.sampling_steps:
            raise RecipeError(
                f"progressive halves {self.first_steps} steps until {self.sampling_steps} are left, and never comes by that number. "
                f"Set method.first_steps to {8 * self.sampling_steps}, or another doubling of {self.sampling_steps}."
            )
        for steps in rounds:
            first = steps == self.first_steps
            guidance = self.guidance if first else 1.0
            method = Halving(
                sampling_steps=steps, guidance=guidance, start=self.start, weighting=self.weighting, first=first
            )
            yield Stage(f"{steps}-step", method)
