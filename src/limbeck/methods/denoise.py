"""Denoising: how a diffusion or flow model is trained in the first place, on data or on what a teacher says of them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from pydantic import Field

from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.times import TimesOption, Uniform
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss


class Denoising(DiffusionMethod):
    """E w(t) |D(alpha x0 + sigma eps, t, c) - x0|^2, the mean over dimensions, c dropped with probability `drop`.

    `weighting` says in which head the error is taken: `head` is the network's own (epsilon-, v- or velocity-matching). With a
    teacher its guided answer R_w(x_t, t, c) stands in the place of x0: the exact score where it is a formula, and the first
    stage of guided distillation (Meng et al. 2023) with guidance. `sampling_steps` is how the student is sampled
    afterwards, without guidance.
    """

    card = Card(
        "denoising",
        summary="A diffusion or flow model learns to denoise: from data, or from a teacher's answers on noisy data.",
        paper="Ho et al.: DDPM, NeurIPS 2020; Lipman et al.: Flow Matching, ICLR 2023; Karras et al.: EDM, NeurIPS 2022; Meng et al.: On Distillation of Guided Diffusion Models, CVPR 2023",
        needs=(),
        use_when="there is no diffusion teacher yet, or one shall be copied into another network, or its guidance made part of it",
        play=Play(
            sampled="data, noised to any time",
            loss="squared error of the network's head, against the data or what the teacher says",
            trains="the student",
            ratio="",
            begins="anything; data",
        ),
        cost="one forward and backward pass; with a teacher its forward pass (two with guidance)",
    )

    sampling_steps: Annotated[int, Field(ge=1)] = 20
    solver: Literal["renoise", "ddim", "heun"] = "heun"
    times: TimesOption = Uniform()
    drop: Annotated[float, Field(ge=0, le=1)] = 0.1

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= {"noise": self.fresh(batch), "time": self.drawn(batch)}
        if self.generator.model.guidable and self.drop:
            batch["drop"] = self.uniform(batch) < self.drop
        yield Update("student", self.loss, batch)

    def loss(self, batch: Batch) -> Loss:
        t = batch["time"]
        x_t = self.noise.renoise(batch["x0"], t, batch["noise"])
        with torch.no_grad():
            target = batch["x0"] if self.reference is None else self.taught(x_t, t, batch, drop=batch.get("drop")).x0
        said = self.generator(x_t, t, self.given(batch, "student"), drop=batch.get("drop"))
        return Loss.mean("denoising", self.error(said, target, t))
