"""Distribution matching distillation (DMD, DMD2): the gradient of a KL divergence, out of two scores (Yin et al. 2024)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.times import TimesOption, Uniform
from limbeck.losses.adversarial import Game, fooled, told_fake, told_real
from limbeck.losses.scores import Weighting, distribution_matching, inject
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss
from limbeck.schedules import Scalar, to_schedule

Values = Float[Tensor, "batch ..."]


class DMD2(DiffusionMethod):
    """G: inject(x0, (F - R_w) / nu) + gan_weight softplus(-H(x_t')), nu = mean |x0 - R_w| per sample, F and R at x0 noised to t.
    F: E |F(x_t) - sg x0|^2 (`weighting`) + critic_gan_weight (softplus(H(fake)) + softplus(-H(real))), all noised.

    x0 = G(`input`): pure noise, or with several `sampling_steps` what G itself has come to at one of its times. Every step has
    an update of the critic; every `critic_steps`-th also one of the student, before it, on the same samples. The critic F
    is a copy of the teacher (`critic_lora`: low-rank updates beside its weights) and is not guided. H stands on F's features, sees
    real data, and is left out at gan_weight 0, so that no data are needed but conditions.
    """

    card = Card(
        "dmd2",
        summary="A generator of one or few steps whose samples are distributed as the teacher's: two scores, a critic, optionally a GAN.",
        paper="Yin et al.: Improved Distribution Matching Distillation for Fast Image Synthesis, NeurIPS 2024, arXiv 2405.14867; One-step Diffusion with Distribution Matching Distillation, CVPR 2024, arXiv 2311.18828",
        needs=("prediction",),
        use_when="a diffusion or flow teacher shall become a generator of one to four steps, with or without data",
        play=Play(
            sampled="noise, or what the student itself came to at a later time",
            loss="gradient (F - R) / nu at a renoised sample; a GAN beside it",
            trains="the student, the critic F, a judge",
            ratio="`critic_steps` : 1, the student first",
            begins="the teacher; conditions, data for the GAN",
        ),
        cost="per step the student's samples and the critic's forward and backward pass; every critic_steps-th also the student's, and the teacher's forward pass (two with guidance); memory for a third network",
    )

    critic_steps: Annotated[int, Field(ge=1)] = 5
    critic_lora: Annotated[int, Field(ge=1)] | None = None
    critic_times: TimesOption = Uniform()
    weighting: Weighting = "head"
    gan_weight: Scalar = 0.0
    critic_gan_weight: Scalar = 1e-2
    gan_times: TimesOption = Uniform()
    game: Game = "softplus"

    def setup(self) -> None:
        super().setup()
        self.make_critic(self.critic_lora)
        self.adversarial = self.gan_weight.spec() != 0.0
        if self.adversarial:
            self.make_judge()

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return super().trainees() | {"critic": [self.critic, *([self.judge] if self.adversarial else [])]}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        fake = self.generated(batch)
        if progress.step % self.critic_steps == 0:
            drawn = {"time": self.drawn(batch), "noise": self.fresh(batch)}
            yield Update("student", self.student_loss, batch | drawn | self.for_the_judge(batch, "fake"))
        drawn = {"time": self.drawn(batch, self.critic_times), "noise": self.fresh(batch), "generated": fake}
        yield Update("critic", self.critic_loss, batch | drawn | self.for_the_judge(batch, "fake", "real"))

    def student_loss(self, batch: Batch) -> Loss:
        x0, t = self.generated(batch), batch["time"]
        with torch.no_grad():
            x_t = self.noise.renoise(x0, t, batch["noise"])
            real = self.taught(x_t, t, batch).x0
            fake = self.fake(x_t, t, self.given(batch, "critic")).x0
        loss = Loss.mean("matching", inject(x0, distribution_matching(x0, fake, real)))
        if self.adversarial:
            weight = to_schedule(self.gan_weight)(self.progress)
            loss = loss + weight * Loss.mean("fooled", fooled(self.judged(x0, "fake", batch), self.game))
        return loss

    def critic_loss(self, batch: Batch) -> Loss:
        x0, t = batch["generated"], batch["time"]
        said = self.fake(self.noise.renoise(x0, t, batch["noise"]), t, self.given(batch, "critic"))
        loss = Loss.mean("denoising", self.error(said, x0, t))
        if self.adversarial:
            weight = to_schedule(self.critic_gan_weight)(self.progress)
            fake, real = self.judged(x0, "fake", batch), self.judged(batch["x0"], "real", batch)
            loss = loss + weight * Loss.mean("told_fake", told_fake(fake, self.game))
            loss = loss + weight * Loss.mean("told_real", told_real(real, self.game))
        return loss

    def for_the_judge(self, batch: Batch, *kinds: str) -> Batch:
        """Times and noise at which the discriminator sees samples: drawn apart for generated and real ones."""
        if not self.adversarial:
            return {}
        times = {f"{kind}_time": self.drawn(batch, self.gan_times) for kind in kinds}
        return times | {f"{kind}_noise": self.fresh(batch) for kind in kinds}

    def judged(self, x0: Values, kind: str, batch: Batch) -> Float[Tensor, "batch"]:
        """How real the discriminator finds samples, noised."""
        t = batch[f"{kind}_time"]
        return self.judge(self.noise.renoise(x0, t, batch[f"{kind}_noise"]), t, self.given(batch, "critic"))
