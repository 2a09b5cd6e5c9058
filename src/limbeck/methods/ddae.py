"""DDAE++: a diffusion model is told what it has understood itself, and taught by its own past on another view (Xiang et al. 2025)."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.diffusion.augmenting import Augmentation, moved, refuse_unmoved
from limbeck.diffusion.contrasting import Sides, contrast
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.further import give
from limbeck.diffusion.selfconditioned import channels, layer_for, pooled, refuse_unheard, self_condition
from limbeck.diffusion.times import Uniform
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.methods.denoise import Denoising
from limbeck.objectives import Loss

TAP = "understood"


class DDAE(Denoising):
    """denoising(x_t, a) + contrastive InfoNCE(pred(q(p)), sg k(p')), p the pooled value of `layer`, which layers behind it are told as well.

    p is of a noisy, augmented sample; p' is what the EMA of the student (`ema`) makes of another augmentation of it at t', drawn evenly
    between no noise and `cleaner` times t (in shares); k is the EMA of q. `symmetric`: both views are asked about, and the terms
    added, as MoCo v3 does; `rescaled`: times 2 temperature, as it does in code. Candidates are the batch. `self_condition`: the layers
    behind `layer` (None: the middle) hear c + a(t) W p for the embedding c of the time, or have it added to the output of `into`. The
    numbers of the augmentation are told to the student (at `place`; None: where it embeds its time); sampled, it is told none.
    Weights, temperatures and networks of the paper are not published: all of them are our choice.
    """

    card = Card(
        "ddae",
        summary="A diffusion model that learns representations too: told its own features, and taught by its past self on other views.",
        paper="Xiang et al.: DDAE++, Enhancing Diffusion Models Towards Unified Generative and Discriminative Learning, arXiv 2505.10999",
        needs=(),
        use_when="one network shall both generate and give features for a classifier, from data without labels",
        play=Play(
            sampled="two augmented views of the data, noised to any times",
            loss="that of denoising, and to find what its past self made of the other view among those of the batch",
            trains="the student with two heads; a moving average answers",
            ratio="",
            begins="anything; data",
        ),
        cost="that of denoising, the EMA's pass up to the layer on each view, and the student's on the second one (symmetric)",
    )

    self_condition: bool = True
    contrastive: Annotated[float, Field(ge=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 0.2
    symmetric: bool = True
    rescaled: bool = False
    cleaner: Annotated[float, Field(ge=0, le=1)] = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    width: Annotated[int, Field(ge=1)] = 128
    augment: Augmentation | None = Augmentation()
    layer: str | None = None
    into: list[str] | None = None
    place: str | None = None

    def prepare(self) -> None:
        self.heard = layer_for(Denoiser(self.student).model, self.layer, self.into)
        self.student.tap(TAP, self.heard)

    def setup(self) -> None:
        features = channels(self.student, TAP)
        if self.augment and self.augment.most:
            give(self.student, dict.fromkeys(self.augment.most, 0.0), self.place)
        if self.self_condition:
            self.notices += self_condition(self.student, self.heard, features, self.into)
        self.student.listen_again()  # the probe sampled, and came by many times: a pass comes by once
        super().setup()
        batch = self.shown(self.example(2))
        if self.augment:
            refuse_unmoved(batch["x0"])
        if self.self_condition:
            refuse_unheard(self.generator, batch["x0"], self.given(batch, "student"))
        if self.contrastive:
            self.make_target()
            self.follower.actor.tap(TAP, self.heard)
            self.sides = Sides(features, self.width).to(batch["x0"].device)

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model, *(self.sides.learns() if self.contrastive else [])]}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        views = [self.view(batch) for _ in range(2 if self.contrastive else 1)]
        for k, own in enumerate(views):
            if self.contrastive:
                share = self.cleaner * self.uniform(batch) * self.noise.share(views[1 - k]["time"])
                own["cleaner"] = Uniform()(self.noise, share)
            batch |= {f"view{k}.{name}": value for name, value in own.items()}
        if self.generator.model.guidable and self.drop:
            batch["drop"] = self.uniform(batch) < self.drop
        yield Update("student", self.loss, batch)
        if self.contrastive:
            self.follow(self.ema)
            self.sides.follow(self.ema)

    def view(self, batch: Batch) -> Batch:
        """One view of the batch, as columns in the place of those: augmented data, and by how much; noise, and at what time."""
        numbers = self.augment.draw(lambda: self.uniform(batch)) if self.augment else {}
        told = {f"student.{name}": value for name, value in numbers.items()}
        return told | {"x0": moved(batch["x0"], numbers), "noise": self.fresh(batch), "time": self.drawn(batch)}

    def loss(self, batch: Batch) -> Loss:
        views = [
            batch | {name.removeprefix(f"view{k}."): v for name, v in batch.items() if name.startswith(f"view{k}.")}
            for k in range(2 if self.contrastive else 1)
        ]
        loss = super().loss(views[0])
        if not self.contrastive:
            return loss
        asked = [pooled(self.generator.heard[TAP])]
        if self.symmetric:
            asked.append(self.features(self.generator, views[1], views[1]["time"]))
        sides = {f"ask{n}": self.sides.asks(p) for n, p in enumerate(asked)}
        with torch.no_grad():
            for n in range(len(asked)):
                other = views[1 - n]
                sides[f"answer{n}"] = self.sides.answers(self.features(self.follower, other, other["cleaner"]))
        function = partial(contrast, temperature=self.temperature, rescaled=self.rescaled)
        return loss + self.contrastive * Loss.batch("contrast", function, **sides)

    def features(self, who: Denoiser, batch: Batch, t: Float[Tensor, "batch"]) -> Float[Tensor, "batch channels"]:
        """What a network has understood at the layer of the batch's x0, with the batch's noise at t."""
        given = who.model.conditioned(self.given(batch, "student"), batch.get("drop"))
        return pooled(who.feature(TAP, self.noise.renoise(batch["x0"], t, batch["noise"]), t, given))
