"""What methods share that teach generators: who denoises, where the student begins, what is drawn, how a critic is made.

A method file states its options, its losses and the order of play in `learn`; everything random is drawn there, through
`begin`, `inputs`, `drawn` and `fresh`, and enters the losses as columns of the batch.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck import randomness
from limbeck.actors import Actor
from limbeck.diffusion.denoiser import Denoiser, copied, with_lora
from limbeck.diffusion.discriminator import Discriminator
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.noise import Noise, refuse_uncovered
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.solvers import ddim
from limbeck.diffusion.times import TimeDistribution, TimesOption, Uniform
from limbeck.engine.pieces import rows
from limbeck.errors import RecipeError
from limbeck.layers import on_device
from limbeck.losses.scores import Weighting, per_sample, weight_of
from limbeck.method import Batch, Method
from limbeck.objectives import Loss
from limbeck.randomness import fold
from limbeck.sources import operate

Values = Float[Tensor, "batch ..."]
PerSample = Float[Tensor, "batch"]


class DiffusionMethod(Method):
    """A method whose student, teacher and critic are denoising networks.

    Options (all further ones are the methods' own):
        sampling_steps: how often the student is evaluated for a sample when it is trained and shipped.
        solver: how it goes on between two evaluations: noise drawn anew (`renoise`), or its own trajectory (`ddim`).
        start: the share of the noise from which it begins; below 1 where a schedule leaves no data at its end.
        guidance: the teacher's guidance scale, or [low, high] to draw one per sample; 1 is none.
        times: at which noise levels scores are compared.

    After `setup`: `generator`, `reference` (None without a teacher) and, with `make_critic`, `fake` are `Denoiser`s that all
    speak of the times of `noise`, which is the student's; `grid` are the student's times, falling, with 0 at the end.
    """

    sampling_steps: Annotated[int, Field(ge=1)] = 1
    solver: Literal["renoise", "ddim", "heun"] = "renoise"
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    guidance: GuidanceOption = 1.0
    times: TimesOption = Uniform(low=0.02, high=0.98)
    weighting: Weighting = "head"

    def setup(self) -> None:
        self.generator = Denoiser(self.student)
        self.noise: Noise = self.generator.noise
        self.reference = Denoiser(self.teacher, self.noise) if self.teacher is not None else None  # type: ignore[redundant-expr]
        self.grid = self.noise.grid(self.sampling_steps, self.start)
        self._refuse()
        self._look_at_data()
        operate(self.student.source, "limbeck.diffusion.network:sample_with", self.sampling())
        if self.reference is not None and not self.guidance.none:  # the teacher is measured as it taught
            how = self.reference.model.sampling
            self.reference.model.sampling = replace(how, guidance=(self.guidance.low + self.guidance.high) / 2)

    def sampling(self) -> dict[str, Any]:
        """How the student is sampled from now on, by itself and where it ships (see `Sampling`)."""
        return {"steps": self.sampling_steps, "solver": self.solver, "start": self.start}

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model]}

    def make_critic(self, lora: int | None = None) -> None:
        """A network that follows the student's samples: `self.fake`, whose parameters are `self.critic`.

        It begins as a copy of the teacher (of the student, where the teacher is a formula), or shares the teacher's weights with low-rank
        updates of rank `lora` beside them, which begin at zero.
        """
        of: Actor = self.teacher if any(True for _ in self.teacher.model.parameters()) else self.student
        if lora is not None and of is self.student:
            raise RecipeError(
                f"critic_lora stands beside the teacher's weights, and this teacher ({type(self.teacher.model).__name__}) has none: it is a formula. Leave it out."
            )
        self.critic: nn.Module
        if lora is None:
            actor = copied(of)
            self.critic = actor.model
        else:
            actor, own = with_lora(of, lora)
            self.critic = nn.ParameterList(own)
        self.fake = Denoiser(actor, self.noise)
        self._fake_is = of.whose

    def make_judge(self) -> None:
        """A discriminator on the critic's features: `self.judge`, a network of noisy samples, times and conditions."""
        batch = self.begin(self.example())
        self.judge = Discriminator(self.fake, self.fresh(batch), self.drawn(batch), self.given(batch, "critic"))

    def example(self, rows: int = 16) -> Batch:
        """The first training rows, where the student is."""
        split = self.data.splits["train"]
        return on_device(self.student, split.__getitems__(list(range(min(rows, len(split))))))

    def make_target(self) -> None:
        """A second network like the student's that follows it slowly: `self.target`, asked through `self.follower`; see `follow`."""
        actor = copied(self.student)
        self.target, self.follower = actor.model, Denoiser(actor, self.noise)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """target <- decay target + (1 - decay) student; buffers are copied."""
        ours = dict(self.student.model.named_parameters())
        for name, p in self.target.named_parameters():
            p.lerp_(ours[name].to(p.dtype), 1 - decay)
        kept = dict(self.student.model.named_buffers())
        for name, b in self.target.named_buffers():
            b.copy_(kept[name])

    def begin(self, batch: Batch) -> Batch:
        """The batch as `shown`, and with `guidance`, a scale per sample."""
        batch = self.shown(batch)
        if not self.guidance.none:
            batch["guidance"] = self.guidance.draw(self.uniform(batch))
        return batch

    def shown(self, batch: Batch) -> Batch:
        """The batch with `x0` (data as they are denoised, where there are any) and conditions."""
        x0, given = self.generator.shown(batch)
        columns = {f"student.{name}": value for name, value in given.items()}
        if self.reference is not None:
            theirs = self.reference.shown(batch, data=False)[1]
            columns |= {f"teacher.{name}": value for name, value in theirs.items()}
        if x0 is not None:
            columns["x0"] = x0
        return batch | columns

    def selection(self, batch: Batch) -> Loss:
        """How well the student denoises, at times and with noise that a row's number alone decides."""
        batch = self.shown(batch)
        if "x0" not in batch:
            return Loss.mean("denoising", torch.zeros(rows(batch)))
        share = randomness.uniform(fold(batch["id"], 0x71)).to(batch["x0"].device)
        t = self.noise.nearest(self.noise.at(0.02 + 0.96 * share))
        eps = randomness.normal(fold(batch["id"], 0x72), *batch["x0"].shape[1:]).to(batch["x0"].device)
        said = self.generator(self.noise.renoise(batch["x0"], t, eps), t, self.given(batch, "student"))
        return Loss.mean("denoising", self.error(said, batch["x0"], t))

    def given(self, batch: Batch, whose: str) -> dict[str, Tensor]:
        """The conditions of a batch as `student`, `teacher` or `critic` is given them."""
        whose = self._fake_is if whose == "critic" else whose
        return {k.removeprefix(f"{whose}."): v for k, v in batch.items() if k.startswith(f"{whose}.")}

    def fresh(self, batch: Batch) -> Values:
        """Standard normal noise, one sample per row."""
        return torch.randn(rows(batch), *self.fresh_shape(batch), device=self._device(batch))

    def fresh_shape(self, batch: Batch) -> tuple[int, ...]:
        """The shape of a sample: that of the data, or what the network itself says where there are none."""
        shape = batch["x0"].shape[1:] if "x0" in batch else self.generator.model.shape
        if shape is None:
            raise RecipeError(
                "the batch holds no data for the student to know the shape of a sample from: give its network a shape, or a view with the data's column."
            )
        return tuple(shape)

    def uniform(self, batch: Batch) -> PerSample:
        """A number in [0, 1) per row."""
        return torch.rand(rows(batch), device=self._device(batch))

    def drawn(self, batch: Batch, times: TimeDistribution | None = None) -> PerSample:
        """A time per row, of `times` or of the method's own."""
        return (times or self.times)(self.noise, self.uniform(batch))

    def shared(self, count: int, salt: int = 0) -> int:
        """A number in 0 .. count - 1 that is drawn once per step, the same for all samples and processes."""
        seed = torch.tensor([self.progress.seed], dtype=torch.int64)
        return int(fold(fold(seed, self.progress.step), salt) % count)

    def inputs(self, batch: Batch, place: int | None = None) -> Batch:
        """`input` and `start`: what the student is shown at one of its own times, and that time.

        The first time has pure noise; a later one what the student itself has come to (backward simulation), without a graph.
        `place`: which time; None: one for all samples, drawn anew in every step.
        """
        place = self.shared(self.sampling_steps) if place is None else place
        grid = self.grid.to(self._device(batch))
        x = self.noise.sigma(grid[0]) * self.fresh(batch)
        with torch.no_grad():
            for here, there in pairwise(grid[: place + 1]):
                t, s = here.expand(len(x)), there.expand(len(x))
                said = self.generator(x, t, self.given(batch, "student"))
                again = self.solver == "renoise"
                x = self.noise.renoise(said.x0, s, self.fresh(batch)) if again else ddim(x, said, self.noise, t, s)
        return {"input": x, "start": grid[place].expand(len(x)).clone()}

    def generated(self, batch: Batch) -> Values:
        """The student's samples from `input` at `start`."""
        return self.generator(batch["input"], batch["start"], self.given(batch, "student")).x0

    def taught(self, x_t: Values, t: PerSample, batch: Batch, drop: Tensor | None = None) -> Prediction:
        """What the teacher says, guided as the batch says; without the condition where `drop` says so."""
        assert self.reference is not None
        return self.reference(x_t, t, self.given(batch, "teacher"), guidance=batch.get("guidance"), drop=drop)

    def error(self, said: Prediction, x0: Values, t: PerSample) -> PerSample:
        """Per sample the mean squared error of what was said against x0, weighted as `weighting` says (`head`: in the network's own head)."""
        if self.weighting == "head":
            exact = Prediction(x0, "x0", said.x_t, said.alpha, said.sigma, said.data_std)
            return per_sample((said.value - exact.as_head(said.head)).square())
        weight = weight_of(self.weighting, self.noise.alpha(t), self.noise.sigma(t), said.data_std)
        return weight * per_sample((said.x0 - x0).square())

    def _device(self, batch: Batch) -> torch.device:
        return next((v.device for v in batch.values() if isinstance(v, Tensor)), torch.device("cpu"))

    @torch.no_grad()
    def _look_at_data(self) -> None:
        """Data of the wrong range are refused; a teacher whose answers look like another head's is spoken of."""
        batch = self.example()
        x, _ = self.generator.columns(batch)
        if x is not None:
            self.generator.model.refuse(x, "student")
        if self.reference is None or next(self.reference.model.parameters(), None) is None:
            return
        shown = self.shown(batch)
        z = randomness.normal(fold(batch["id"], 0x73), *self.fresh_shape(shown)).to(self._device(batch))
        t = self.noise.nearest(torch.full((len(z),), float(self.grid[0]), device=z.device))
        said = self.reference(self.noise.sigma(t[:1]) * z, t, self.given(shown, "teacher"))
        alike = float(torch.corrcoef(torch.stack([said.value.flatten(), z.flatten()]))[0, 1])
        head = said.head
        if (head == "epsilon" and alike < 0.3) or (head in ("v", "x0") and alike > 0.9):
            other = "v or x0" if head == "epsilon" else "epsilon"
            self.notices.append(
                f"the teacher is said to predict {head}; shown noise alone, its answers go with that noise by {alike:.2f} (correlation), which is more like "
                f"{other}. If it is trained, its scheduler's prediction_type (or head) is not what it was trained for."
            )

    def _refuse(self) -> None:
        """What cannot come to any good is refused before the first step."""
        if self.reference is None:
            return
        if not self.guidance.none and not self.reference.model.guidable:
            raise RecipeError(
                f"guidance={self.guidance.spec()} needs a teacher that also knows what to say without the condition, and this "
                f"{type(self.reference.model).__name__} does not. Set method.guidance=1"
            )
        refuse_uncovered(self.noise, float(self.grid[0]), self.reference.model.noise, "teacher")
