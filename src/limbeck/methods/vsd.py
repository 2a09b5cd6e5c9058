"""Variational score distillation of a generator (SwiftBrush): two guided scores, from conditions alone (Nguyen and Tran 2024)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.method import DiffusionMethod, PerSample, Values
from limbeck.diffusion.noise import wide
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.times import TimesOption, Uniform
from limbeck.losses.scores import Weighting, inject
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss


class VSD(DiffusionMethod):
    """G: inject(x0, sigma_t^2 (eps_R^w - eps_F^w)), F and R at x0 noised to t, both guided by the same scale w.
    F: E alpha_t^2 |eps_F(x_t, t, c) - eps|^2 on sg x0, c dropped with probability `drop`, without which F^w means nothing.

    In terms of x0 the gradient is sigma_t alpha_t (F^w - R^w). One update of each per step, the student's first, on the same
    samples. F begins as the teacher (`critic_lora`: low-rank updates beside its weights, published rank 64), so the first
    gradient of the student is zero. Published rates: 1e-6 for the student, 1e-3 for the critic (train.trainees). `weighting`
    is the head of the critic's error, before alpha_t^2. No data are needed but conditions.
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
    critic_lora: Annotated[int, Field(ge=1)] | None = None
    critic_times: TimesOption = Uniform()
    weighting: Weighting = "epsilon"
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1

    def setup(self) -> None:
        super().setup()
        self.make_critic(self.critic_lora)

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return super().trainees() | {"critic": [self.critic]}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        fake = self.generated(batch)
        yield Update("student", self.student_loss, batch | {"time": self.drawn(batch), "noise": self.fresh(batch)})
        batch |= {"time": self.drawn(batch, self.critic_times), "noise": self.fresh(batch), "generated": fake}
        if self.fake.model.guidable and self.drop:
            batch["drop"] = self.uniform(batch) < self.drop
        yield Update("critic", self.critic_loss, batch)

    def student_loss(self, batch: Batch) -> Loss:
        x0, t = self.generated(batch), batch["time"]
        with torch.no_grad():
            x_t = self.noise.renoise(x0, t, batch["noise"])
            real = self.taught(x_t, t, batch)
            fake = self.followed(x_t, t, batch)
            gradient = wide(self.noise.sigma(t).square(), x0) * (real.epsilon - fake.epsilon)
        return Loss.mean("matching", inject(x0, torch.nan_to_num(gradient)))

    def critic_loss(self, batch: Batch) -> Loss:
        x0, t = batch["generated"], batch["time"]
        x_t = self.noise.renoise(x0, t, batch["noise"])
        said = self.fake(x_t, t, self.given(batch, "critic"), drop=batch.get("drop"))
        weight = self.noise.alpha(t).square().to(x0.device, torch.float32)
        return Loss.mean("denoising", weight * self.error(said, x0, t))

    def followed(self, x_t: Values, t: PerSample, batch: Batch) -> Prediction:
        """What the critic says, guided by the teacher's scale."""
        return self.fake(x_t, t, self.given(batch, "critic"), guidance=batch.get("guidance"))
