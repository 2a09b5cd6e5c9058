"""GDD and GDD-I: a diffusion model made a one-step generator by a GAN alone, starting from its own weights (Zheng and Yang 2024)."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser, copied
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.projected import Projected, gradient_penalty
from limbeck.errors import RecipeError
from limbeck.losses.adversarial import fooled, told_fake, told_real
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss

Values = Float[Tensor, "batch ..."]
INNATE = r"(?=.*(block|up|down|in))(?=.*(conv|proj))"
"""What the paper freezes: of blocks and of the way in, convolutions and projections."""


class GDD(DiffusionMethod):
    """G: sum_k softplus(-H_k(x0)). H: sum_k softplus(H_k(sg x0)) + softplus(-H_k(real)); every `r1_every`-th step r1_every r1 / 2 |d H / d real|^2.

    The teacher gives weights, not targets: let the student begin as it. H_k are small heads on frozen features at `layers`, of
    the module `features` (`module:Class`, shown the samples; None: a copy of the student as it begins, at its least noise
    and with the condition, at its middle layer). One update of each per step, the student's first. `innate` (GDD-I) freezes the
    parameters whose names it matches: true is the paper's pattern, a regular expression is your own. The student is in eval mode
    throughout (no dropout). Figures in the features that H stands on flatter it. Published: Adam with betas (0, 0.99), the judge's rate
    once (CIFAR), twice (faces) or five times the student's (ImageNet), an average of the weights.
    """

    card = Card(
        "gdd",
        summary="A diffusion model becomes a one-step generator by a GAN alone; most of its layers may rest.",
        paper="Zheng, Yang: Diffusion Models Are Innate One-Step Generators, arXiv 2405.20750",
        needs=(),
        teacher_mode="none",
        use_when="the student is a trained diffusion model, there are data, and samples shall be as the data rather than as the teacher's",
        play=Play(
            sampled="noise",
            loss="softplus GAN on frozen features; no score",
            trains="the student (or its innate layers), the judge",
            ratio="1 : 1, the student first; R1 every `r1_every`",
            begins="the teacher; data",
        ),
        cost="forward and backward passes of the student and of frozen features, three times; no pass of a teacher",
    )

    features: str | None = None
    layers: list[str] | None = None
    innate: bool | str = False
    judge_lr_ratio: Annotated[float, Field(gt=0)] = 5.0
    r1: Annotated[float, Field(ge=0)] = 1e-4
    r1_every: Annotated[int, Field(ge=1)] = 16

    def setup(self) -> None:
        super().setup()
        trunk = Denoiser(copied(self.student), self.noise)
        batch = self.begin(self.example())
        if "x0" not in batch:
            raise RecipeError("gdd learns from data, and the student is shown none: give its view the data's column.")
        self.projected = Projected(
            trunk, batch["x0"], self.given(batch, "student"), features=self.features, layers=self.layers
        )

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": self._learning(), "judge": [self.projected.heads]}

    def lr_ratios(self) -> dict[str, float]:
        return {"judge": self.judge_lr_ratio}

    def _learning(self) -> list[nn.Module | nn.Parameter]:
        """Parameters, not the network, which so stays in eval mode: no dropout, and no statistics of batches."""
        if not self.innate:
            return list(self.student.model.parameters())
        pattern = INNATE if self.innate is True else self.innate
        rest = {n for n, _ in self.student.model.named_parameters() if re.search(pattern, n)}
        learning: list[nn.Module | nn.Parameter] = [
            p for n, p in self.student.model.named_parameters() if n not in rest
        ]
        if not rest or not learning:
            raise RecipeError(
                f"method.innate freezes the parameters whose names match {pattern}: {len(rest)} of {len(rest) + len(learning)} do. "
                "Some must, and some must not: give a regular expression of the names (limbeck inspect MODEL lists them)."
            )
        return learning

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= self.inputs(batch)
        fake = self.made(batch)
        yield Update("student", self.student_loss, batch)
        batch["generated"] = fake
        yield Update("judge", self.judge_loss, batch)
        if self.r1 and progress.step % self.r1_every == 0:
            yield Update("judge", self.penalty, batch)

    def judged(self, x: Values, batch: Batch) -> Float[Tensor, "batch heads"]:
        """How real every head finds samples."""
        return self.projected(x, self.given(batch, "student"))

    def student_loss(self, batch: Batch) -> Loss:
        return Loss.mean("fooled", fooled(self.judged(self.generated(batch), batch)).sum(1))

    def judge_loss(self, batch: Batch) -> Loss:
        fake, real = self.judged(batch["generated"], batch), self.judged(batch["x0"], batch)
        return Loss.mean("told_fake", told_fake(fake).sum(1)) + Loss.mean("told_real", told_real(real).sum(1))

    def penalty(self, batch: Batch) -> Loss:
        with torch.enable_grad():
            steep = gradient_penalty(lambda x: self.judged(x, batch).sum(1), batch["x0"])
        return self.r1_every * self.r1 / 2 * Loss.mean("r1", steep)
