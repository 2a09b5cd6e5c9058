"""SCott: consistency whose teacher takes several stochastic steps, with a discriminator on the ends (Liu et al. 2025, arXiv 2403.01505)."""

from __future__ import annotations

from collections.abc import Generator
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.diffusion.solvers import ddim
from limbeck.losses.adversarial import Game, fooled, told_fake, told_real
from limbeck.losses.scores import apart
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.methods.lcm import LCM
from limbeck.objectives import Loss

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]


class SCott(LCM):
    """LCM's loss, x_s reached from x_t by `substeps` stochastic DDIM steps (`eta`), + gan_weight L(H(f(x_t), t)).

    H: told_real(H(x0, t)) + told_fake(H(sg f, t)), hinge. It sees clean samples, the time t that f started from and the condition,
    and stands on the middle of a copy of the teacher that learns with it (`judge_lora`: on low-rank updates of that rank, as in the
    paper, whose updates are in the decoder). eta=0, substeps=1, gan_weight=0 is LCM. `discretisation` 42 is a
    step of 24 thousandths; the eta of the paper's figures is not known to us. H learns at `judge_lr_ratio` of the student's rate.
    """

    card = Card(
        "scott",
        summary="Consistency distillation with a stochastic teacher of several sub-steps, and a GAN on clean samples.",
        paper="Liu et al.: SCott, Accelerating Diffusion Models with Stochastic Consistency Distillation, AAAI 2025, arXiv 2403.01505",
        needs=("prediction",),
        use_when="as lcm, where samples of one or two steps shall be sharper and more diverse",
        play=Play(
            sampled="data, noised to a time of a grid",
            loss="consistency over random sub-steps of the teacher, and a hinge GAN",
            trains="the student and the judge",
            ratio="in one update",
            begins="the teacher; data",
        ),
        cost="`substeps` guided teacher steps, the target's forward pass, one forward and backward pass of student and of discriminator; memory for both",
    )

    discretisation: Annotated[int, Field(ge=1)] = 42
    substeps: Annotated[int, Field(ge=1)] = 3
    eta: Annotated[float, Field(ge=0, le=1)] = 0.3
    gan_weight: Annotated[float, Field(ge=0)] = 0.4
    judge_lora: Annotated[int, Field(ge=1)] | None = None
    judge_lr_ratio: Annotated[float, Field(gt=0)] = 2.5
    game: Game = "hinge"

    def setup(self) -> None:
        super().setup()
        if self.gan_weight:
            self.make_critic(self.judge_lora)
            self.make_judge()

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        players = super().trainees()
        if self.gan_weight:
            players["judge"] = [self.critic, self.judge]
        return players

    def lr_ratios(self) -> dict[str, float]:
        return {"judge": self.judge_lr_ratio}

    def begin(self, batch: Batch) -> Batch:
        batch = super().begin(batch)
        if self.eta and "x0" in batch:
            batch["kicks"] = torch.stack([self.fresh(batch) for _ in range(self.substeps)], 1)
        return batch

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        for update in super().learn(batch, progress):
            batch = dict(update.batch)
            if self.gan_weight:
                batch["generated"] = self.ended(batch)
            yield Update("student", self.loss, batch)
            if self.gan_weight:
                yield Update("judge", self.judge_loss, batch)

    def step(self, x: Values, t: Times, s: Times, batch: Batch) -> Values:
        """From t to s in equal stochastic steps, each with noise of its own."""
        ways = [t + (s - t) * i / self.substeps for i in range(self.substeps + 1)]
        ways = [t, *(self.noise.nearest(way) for way in ways[1:-1]), s]
        for i, (here, there) in enumerate(pairwise(ways)):
            fresh = batch["kicks"][:, i] if self.eta else None
            x = ddim(x, self.taught(x, here, batch), self.noise, here, there, self.eta, fresh)
        return x

    def judged(self, x: Values, batch: Batch) -> Float[Tensor, "batch"]:
        """How real the discriminator finds clean samples."""
        return self.judge(x, batch["time"], self.given(batch, "critic"))

    def loss(self, batch: Batch) -> Loss:
        if not self.gan_weight:
            return super().loss(batch)
        aim, found = self.aim(batch), self.ended(batch)
        tricked = Loss.mean("fooled", fooled(self.judged(found, batch), self.game))
        return Loss.mean("consistency", apart(found, aim, self.distance, self.c)) + self.gan_weight * tricked

    def judge_loss(self, batch: Batch) -> Loss:
        real, fake = self.judged(batch["x0"], batch), self.judged(batch["generated"], batch)
        return Loss.mean("told_real", told_real(real, self.game)) + Loss.mean("told_fake", told_fake(fake, self.game))
