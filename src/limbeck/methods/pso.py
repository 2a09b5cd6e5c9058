"""Pairwise sample optimisation: a few-step generator learns a preference and stays a few-step generator (Miao et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.method import DiffusionMethod, PerSample, Values
from limbeck.diffusion.noise import wide
from limbeck.diffusion.preference import dominates, log_density, scored
from limbeck.engine.pieces import rows
from limbeck.errors import RecipeError
from limbeck.losses.scores import Weighting
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss
from limbeck.sources import import_from


class PSO(DiffusionMethod):
    """The student begins as the distilled teacher, which stays as the reference; adapters (student.lora) keep it near.

    With `reward` (`module:function(samples, batch)`, [batch] or [batch, rewards]), online: two samples per row; at each step but the last, in a shared random
    order, one update by -log sigmoid(beta y (rho_0 - rho_1)), rho = log clip(p(x_s | x_t) / p_ref(x_s | x_t), 1 -+ clip), p = N(alpha_s D(x_t),
    sigma_s^2 I) to the power 1 / dimensions, y = 1 where sample 0 is better in all rewards, -1 where sample 1 is, 0 where neither.
    Without, offline: data against samples of the reference, the same noise at one of the student's times, errors L_w and L_l (`weighting`):
    `ratio` -log sigmoid(beta ((ref_w - k ref_l) - (L_w - k L_l))), `hinge` relu(1 + beta (L_w - k L_l)); + prior L_l.
    `beta` None: 50 online, 5 offline, as published. (There 20 samples of the reference are made once; here new ones in every step.)
    """

    card = Card(
        "pso",
        summary="A distilled few-step generator is tuned to a reward, or to some pictures, by pairs of samples.",
        paper="Miao, Yang, Lin, Wang, Liu, Wang, Qiu: Tuning Timestep-Distilled Diffusion Model Using Pairwise Sample Optimization, ICLR 2025, arXiv 2410.03190",
        needs=("prediction",),
        use_when="a student of few steps exists, and shall be adapted without being distilled again; denoising would blur it",
        play=Play(
            sampled="its own samples, in pairs",
            loss="logistic loss of log-ratios of its own steps, which reward or origin orders",
            trains="the student (or low-rank updates)",
            ratio="",
            begins="a distilled student; conditions, a reward or chosen data",
        ),
        cost="online two samples per row and, at every step but the last, two passes of the student with a gradient and two of the reference; offline one sample of the reference, two passes of each",
    )

    judge_of: ClassVar[Any]  # the reward: no part of the method
    sampling_steps: Annotated[int, Field(ge=1)] = 4
    solver: Literal["renoise"] = "renoise"  # type: ignore[assignment]
    weighting: Weighting = "epsilon"
    reward: str | None = None
    beta: Annotated[float, Field(gt=0)] | None = None
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.1
    offline: Literal["ratio", "hinge"] = "hinge"
    k: Annotated[float, Field(ge=0)] = 0.1
    prior: Annotated[float, Field(ge=0)] = 0.5

    def setup(self) -> None:
        super().setup()
        if not self.reward:
            return
        if self.sampling_steps == 1:
            raise RecipeError(
                "with a reward pso learns from all steps but the last, and there is only one. Set method.sampling_steps to 2 or more."
            )
        object.__setattr__(self, "judge_of", import_from(self.reward, "method.reward"))
        batch = self.shown(self.example())
        x = torch.zeros(rows(batch), *self.fresh_shape(batch), device=self._device(batch))
        scored(self.judge_of, self.generator.model.decoded(x), batch)

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        if not self.reward:
            time = self.grid.to(self._device(batch))[(self.uniform(batch) * self.sampling_steps).long()]
            worse = self.walk(self.reference, "teacher", batch)[-1]  # type: ignore[arg-type]
            yield Update(
                "student", self.offline_loss, batch | {"time": time, "worse": worse, "noise": self.fresh(batch)}
            )
            return
        first, second = (self.walk(self.generator, "student", batch) for _ in range(2))
        scores = [scored(self.judge_of, self.generator.model.decoded(states[-1]), batch) for states in (first, second)]
        batch["better"] = dominates(*scores)
        chance = torch.Generator().manual_seed(self.shared(2**31 - 1))
        for j in torch.randperm(self.sampling_steps - 1, generator=chance).tolist():
            times = {
                name: torch.full_like(batch["better"], float(self.grid[j + i]))
                for i, name in enumerate(("time", "after"))
            }
            pair = {"x_0": first[j], "next_0": first[j + 1], "x_1": second[j], "next_1": second[j + 1]}
            yield Update("student", self.online_loss, batch | times | pair)

    def walk(self, who: Denoiser, whose: str, batch: Batch) -> list[Values]:
        """The states of a sample in `sampling_steps` steps, with noise drawn anew in each, from noise to x0."""
        states: list[Values] = []
        states.append(self.sampled(batch, of=who, whose=whose, watch=lambda x, said, following: states.append(x)))
        return states

    def online_loss(self, batch: Batch) -> Loss:
        t, s = batch["time"], batch["after"]
        rho = []
        for i in (0, 1):
            x, ends = batch[f"x_{i}"], []
            for who, whose in ((self.generator, "student"), (self.reference, "teacher")):
                mean = wide(self.noise.alpha(s), x) * who(x, t, self.given(batch, whose)).x0  # type: ignore[misc]
                ends.append(log_density(batch[f"next_{i}"], mean, self.noise.sigma(s)))
            rho.append((ends[0] - ends[1]).clamp(math.log(1 - self.clip), math.log(1 + self.clip)))
        return Loss.mean("preference", F.softplus(-(self.beta or 50.0) * batch["better"] * (rho[0] - rho[1])))

    def offline_loss(self, batch: Batch) -> Loss:
        ours, theirs = (
            [self.failing(who, whose, x, batch) for x in (batch["x0"], batch["worse"])]
            for who, whose in ((self.generator, "student"), (self.reference, "teacher"))
        )
        gap, usual = ours[0] - self.k * ours[1], theirs[0] - self.k * theirs[1]
        beta = self.beta or 5.0
        value = F.softplus(-beta * (usual - gap)) if self.offline == "ratio" else F.relu(1 + beta * gap)
        return Loss.mean("preference", value) + self.prior * Loss.mean("prior", ours[1])

    def failing(self, who: Any, whose: str, x: Values, batch: Batch) -> PerSample:
        """The denoising error of samples, with the batch's time and noise."""
        t = batch["time"]
        return self.error(who(self.noise.renoise(x, t, batch["noise"]), t, self.given(batch, whose)), x, t)
