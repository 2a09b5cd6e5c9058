"""Distribution matching distillation (DMD, DMD2): the gradient of a KL divergence, out of two scores (Yin et al. 2024)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.critic import CriticMethod
from limbeck.losses.scores import distribution_matching, inject
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update

Values = Float[Tensor, "batch ..."]


class DMD2(CriticMethod):
    """G: inject(x0, (F - R_w) / nu) + gan_weight softplus(-H(x_t')), nu = mean |x0 - R_w| per sample, F and R at x0 noised to t.
    F: E |F(x_t) - sg x0|^2 (`weighting`) + critic_gan_weight (softplus(H(fake)) + softplus(-H(real))), all noised.

    x0 = G(`input`): pure noise, or with several `sampling_steps` what G itself has come to at one of its times. Every step has
    an update of the critic; every `critic_steps`-th also one of the student, before it, on the same samples. The critic F
    is a copy of the teacher (`critic_lora`: low-rank updates beside its weights) and is not guided. H stands on F's features, sees
    real data, and is left out at gan_weight 0, so that no data are needed but conditions. Published: clip 10, gan_weight 1e-3 to
    5e-3, one rate for both; "5 : 1" is five updates of the critic for one of the student here, in FastGen four.
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

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        made = self.made(batch)
        if progress.step % self.critic_steps == 0:
            yield Update("student", self.student_loss, self.for_student(batch))
        yield Update("critic", self.critic_loss, self.for_critic(batch, made))

    def matching(self, x0: Values, batch: Batch) -> Float[Tensor, "batch"]:
        with torch.no_grad():
            x_t = self.noised(x0, batch)
            real, fake = self.taught(x_t, batch["time"], batch).x0, self.followed(x_t, batch).x0
        return inject(x0, distribution_matching(x0, fake, real))
