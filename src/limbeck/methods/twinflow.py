"""TwinFlow: one network is generator, real score and fake score, told apart by the sign of a time (ICLR 2026, arXiv 2512.05150)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.further import give
from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.noise import Flow, wide
from limbeck.errors import RecipeError
from limbeck.losses.scores import inject, per_sample
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update
from limbeck.objectives import Loss

Values = Float[Tensor, "batch ..."]
Times = Float[Tensor, "batch"]


class TwinFlow(DiffusionMethod):
    """U(x, t, u) is the mean velocity from t to u in [0, t]; at u = t the velocity itself, and at u = -t that of the flow of U's own samples.

    With x_t = (1 - t) x0 + t z, v the velocity to learn, y = U(z, 1, 0) and the sample z - y, the sum of
    recursion   |U - sg[U - clip(q, -1, 1)]|^2, q = ((t - u) U(x_t, t, u) - I) / reach - v, u ~ U[0, t],
    flow        |U(x_t, t, t) - v|^2,            one_step   the recursion of y, from 1 to 0,
    fake        |U(x_t', t', -t') - (z' - sg[z - y])|^2, x_t' the sample noised by z',
    matching    |y - sg[y - d]|^2, d = U(x_t'', t'', -t'') - U(x_t'', t'', t''), the sample noised anew (both with `matching_weight`; 0 leaves them out).
    I: `order` Euler steps of the EMA network (decay from 0 up to `ema`) from max(t - reach, u) to u, from x_t - (t - max(t - reach, u)) v on.

    v is the teacher's guided velocity where there is a teacher, else z - x0 + `enhance` (U(., c) - U(., 0)) of the EMA network. Rows without data take the
    student's own samples as x0. u is a further number to the network, whose embedding begins at zero; it alone tells the twins apart, t is |t| in
    both. This is the published tutorial's form, with its unit weights; that for large models (roles shared out in a batch, a robust distance) is not here.
    """

    card = Card(
        "twinflow",
        summary="One-step generation without critic or discriminator: the network's twin at negative times follows its own samples.",
        paper="TwinFlow: Realizing One-step Generation on Large Models with Self-adversarial Flows, ICLR 2026, arXiv 2512.05150",
        needs=(),
        use_when="a flow model shall generate in one step, and there is no memory for a critic; a teacher is not needed",
        play=Play(
            sampled="data and noise; its own samples at negative times",
            loss="matching of its own velocities at plus and minus t, beside flow and self-consistency",
            trains="one network, its moving average",
            ratio="one update",
            begins="a flow or nothing; data",
        ),
        cost="six passes of the network with a gradient to four of them, 2 * order + 2 of its EMA copy (or two of a teacher); memory for one copy",
    )

    solver: Literal["renoise", "ddim", "heun"] = "renoise"
    enhance: Annotated[float, Field(ge=0)] = 0.5
    order: Annotated[int, Field(ge=1)] = 2
    reach: Annotated[float, Field(gt=0, lt=1)] = 0.01
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    matching_weight: Annotated[float, Field(ge=0)] = 1.0
    place: str | None = None

    def setup(self) -> None:
        give(self.student, {"until": 0.0}, self.place)
        super().setup()
        if not isinstance(self.noise, Flow) or self.start != 1:
            raise RecipeError(
                f"twinflow speaks of straight lines from data to noise alone, and the student's noise is {type(self.noise).__name__} from a share of "
                f"{self.start:g} on. Give the student flow noise and method.start=1, or take method=dmd2."
            )
        self.make_target()

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        batch |= {"z": self.fresh(batch), "fake_noise": self.fresh(batch), "matching_noise": self.fresh(batch)}
        for name in ("time", "fake_time", "matching_time"):
            batch[name] = self.uniform(batch).clamp(self.noise.first, 1)
        batch |= {"to": batch["time"] * self.uniform(batch)}
        if "x0" not in batch:
            z = self.fresh(batch)
            batch["x0"] = z - self.towards(z, torch.ones_like(batch["time"]), torch.zeros_like(batch["time"]), batch)
        yield Update("student", self.loss, batch)
        self.follow(min(self.ema, progress.step / (progress.step + 1)))

    def loss(self, batch: Batch) -> Loss:
        t, to, z = batch["time"], batch["to"], batch["z"]
        x_t, one, zero = self.noise.renoise(batch["x0"], t, z), torch.ones_like(t), torch.zeros_like(t)
        with torch.no_grad():
            v, v_1 = self.velocity(x_t, t, batch), self.velocity(z, one, batch)
        u, y = self.towards(x_t, t, to, batch), self.towards(z, one, zero, batch)
        loss = Loss.mean("recursion", 2 * inject(u, self.residual(u, v, x_t, t, to, batch)))
        loss = loss + Loss.mean("flow", per_sample((self.towards(x_t, t, t, batch) - v).square()))
        loss = loss + Loss.mean("one_step", 2 * inject(y, self.residual(y, v_1, z, one, zero, batch)))
        if not self.matching_weight:
            return loss
        made = (z - y).detach()
        eps, s = batch["fake_noise"], batch["fake_time"]
        fake = self.towards(self.noise.renoise(made, s, eps), s, -s, batch)
        with torch.no_grad():
            s = batch["matching_time"]
            x_s = self.noise.renoise(made, s, batch["matching_noise"])
            d = self.towards(x_s, s, -s, batch) - self.towards(x_s, s, s, batch)
        parts = Loss.mean("fake", per_sample((fake - (eps - made)).square())) + Loss.mean("matching", 2 * inject(y, d))
        return loss + self.matching_weight * parts

    def towards(self, x: Values, t: Times, to: Times, batch: Batch, of: Denoiser | None = None) -> Values:
        """U(x, t, to) of the student, or of another."""
        return (of or self.generator)(x, t, self.given(batch, "student"), until=to).velocity

    def velocity(self, x: Values, t: Times, batch: Batch) -> Values:
        """The velocity to learn."""
        if self.reference is not None:
            return self.taught(x, t, batch).velocity
        v = (x - batch["x0"]) / wide(t, x)  # z - x0
        if not (self.enhance and self.generator.model.guidable):
            return v
        given, nothing = self.given(batch, "student"), torch.ones_like(t, dtype=torch.bool)
        said, unsaid = (self.follower(x, t, given, drop=drop, until=t).velocity for drop in (None, nothing))
        return v + self.enhance * (said - unsaid)

    @torch.no_grad()
    def residual(self, u: Values, v: Values, x: Values, t: Times, to: Times, batch: Batch) -> Values:
        """clip(q, -1, 1): by how much the jump from t to `to` is not the first bit of the way and the jump from there."""
        here = torch.maximum(t - self.reach, to)
        x, way, whole = x - wide(t - here, x) * v, torch.zeros_like(x), (here - to) / self.order
        for i in range(self.order):
            a, b = here - i * whole, here - (i + 1) * whole
            mean = self.towards(x, a.clamp(min=self.noise.first), b.clamp(min=0), batch, self.follower)
            x, way = x - wide(whole, x) * mean, way + wide(whole, x) * mean
        near = wide(t - to, x) < self.reach  # the whole way is the first bit
        q = torch.where(near, u - v, (wide(t - to, x) * u - way) / self.reach - v)
        return q.clamp(-1, 1)
