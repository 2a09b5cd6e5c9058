"""Variational score distillation of a generator (SwiftBrush): two guided scores, from conditions alone (Nguyen and Tran 2024)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

import torch
from pydantic import Field

from limbeck.diffusion.critic import CriticMethod
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import PerSample, Values
from limbeck.diffusion.noise import wide
from limbeck.errors import RecipeError
from limbeck.losses.scores import Weighting, inject
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update, name_of


class VSD(CriticMethod):
    """G: inject(x0, sigma_t^2 (eps_R^w - eps_F^w)), F and R at x0 noised to t, both guided by the same scale w.
    F: E alpha_t^2 |eps_F(x_t, t, c) - eps|^2 on sg x0, c dropped with probability `drop`, without which F^w means nothing.

    In terms of x0 the gradient is sigma_t alpha_t (F^w - R^w). One update of each per step, the student's first, on the same
    samples. F begins as the teacher (`critic_lora`: low-rank updates beside its weights, published rank 64 and alpha 108), so the
    first gradient of the student is zero. c is dropped per sample (in the published code per batch). Published: 1e-6 for the student and `critic_lr_ratio` 1000 for
    low-rank updates; ten is our choice, which a whole network bears. `weighting`
    is the head of the critic's error, before alpha_t^2. No data are needed but conditions, unless `gan_weight` adds dmd2's game.
    """

    card = Card(
        "vsd",
        summary="A one-step generator out of prompts alone: the difference of two guided scores, one of them a critic's.",
        paper="Nguyen, Tran: SwiftBrush, One-Step Text-to-Image Diffusion Model with Variational Score Distillation, CVPR 2024, arXiv 2312.05239",
        needs=("prediction",),
        use_when="the teacher is conditional and used with guidance, and there are no pictures but prompts or classes",
        play=Play(
            sampled="noise",
            loss="gradient sigma^2 (eps_R - eps_F), both guided",
            trains="the student, the critic F (or its low-rank updates)",
            ratio="1 : 1, the student first",
            begins="the teacher; conditions",
        ),
        cost="the student's forward and backward pass, two passes of the teacher and two of the critic without a graph, one with; memory for a third network, or for its low-rank updates",
    )

    guidance: GuidanceOption = 4.5
    critic_lr_ratio: Annotated[float, Field(gt=0)] = 10.0
    weighting: Weighting = "epsilon"
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1

    def setup(self) -> None:
        super().setup()
        if not self.guidance.none and not self.fake.model.guidable:
            raise RecipeError(
                f"{name_of(type(self))} guides its critic by the teacher's scale, and the critic begins as the student (the teacher is a formula), a "
                f"{type(self.fake.model).__name__} that does not know what to say without a condition. Give the student the teacher's classes, or set method.guidance=1"
            )

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        made = self.made(batch)
        yield Update("student", self.student_loss, self.for_student(batch))
        batch = self.for_critic(batch, made)
        if self.fake.model.guidable and self.drop:
            batch["drop"] = self.uniform(batch) < self.drop
        yield Update("critic", self.critic_loss, batch)

    def matching(self, x0: Values, batch: Batch) -> PerSample:
        t = batch["time"]
        with torch.no_grad():
            x_t = self.noised(x0, batch)
            real, fake = self.taught(x_t, t, batch), self.followed(x_t, batch, guidance=batch.get("guidance"))
            gradient = wide(self.noise.sigma(t).square(), x0) * (real.epsilon - fake.epsilon)
        return inject(x0, gradient)

    def following(self, x0: Values, batch: Batch) -> PerSample:
        said = self.followed(self.noised(x0, batch), batch, drop=batch.get("drop"))
        return self.noise.alpha(batch["time"]).square().to(x0) * self.error(said, x0, batch["time"])
