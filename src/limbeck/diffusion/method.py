"""What methods share that teach generators: who denoises, where the student begins, what is drawn, how a critic is made.

A method file states its options, its losses and the order of play in `learn`; everything random is drawn there, through
`begin`, `inputs`, `drawn` and `fresh`, and enters the losses as columns of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck import randomness
from limbeck.actors import Actor
from limbeck.diffusion.denoiser import Denoiser, copied, with_lora
from limbeck.diffusion.discriminator import Discriminator
from limbeck.diffusion.encoded import refuse_others
from limbeck.diffusion.guidance import GuidanceOption
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.diffusion.noise import Noise, refuse_uncovered
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.solvers import sample
from limbeck.diffusion.times import TimeDistribution, TimesOption, Uniform
from limbeck.engine.pieces import rows
from limbeck.errors import RecipeError
from limbeck.layers import on_device
from limbeck.losses.scores import Weighting, per_sample, weight_of
from limbeck.method import Batch, Method, name_of
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
    A method that learns from `several` teachers has them in `references` by name; `reference` is then the first of them.
    """

    several: ClassVar[bool] = False
    sampling_steps: Annotated[int, Field(ge=1)] = 1
    solver: Literal["renoise", "ddim", "heun"] = "renoise"
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    guidance: GuidanceOption = 1.0
    times: TimesOption = Uniform(low=0.02, high=0.98)
    weighting: Weighting = "head"

    def prepare(self) -> None:
        members = self.teacher.members if self.teacher is not None else {}  # type: ignore[redundant-expr]
        named = {f"teacher {name}" if len(members) > 1 else "teacher": member for name, member in members.items()}
        for name, actor in {"student": self.student, **named}.items():
            if isinstance(actor.model, DiffusionNetwork):
                actor.model.whose = name

    def setup(self) -> None:
        self.generator = Denoiser(self.student)
        self.noise: Noise = self.generator.noise
        self.grid = self.noise.grid(self.sampling_steps, self.start)
        self.references = self._asked()
        self.reference = next(iter(self.references.values()), None)
        self._alike = self.reference is not None and self.generator.understands_as(self.reference)
        self._refuse()
        if self.data.encoded is not None:
            refuse_others(self.data.encoded, self.student, *(who.actor for who in self.references.values()))
        self._look_at_data()
        operate(self.student.source, "limbeck.diffusion.network:sample_with", self.sampling())
        for who in self.references.values() if not self.guidance.none else ():  # teachers are measured as they taught
            middle = (self.guidance.low + self.guidance.high) / 2
            who.model.sampling = replace(who.model.sampling, guidance=middle)

    def sampling(self) -> dict[str, Any]:
        """How the student is sampled from now on, by itself and where it ships (see `Sampling`)."""
        return {"steps": self.sampling_steps, "solver": self.solver, "start": self.start}

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {"student": [self.student.model]}

    def actors(self) -> list[Actor]:
        """Critic and target, where their weights are their own."""
        asked = [value.actor for value in vars(self).values() if isinstance(value, Denoiser)]
        own = set(self.modules())
        return [actor for actor in dict.fromkeys(asked) if actor.model in own]

    def make_critic(self, lora: int | None = None, alpha: int | None = None) -> None:
        """A network that follows the student's samples: `self.fake`, whose parameters are `self.critic`.

        It begins as a copy of the teacher (of the student, where the teacher is a formula), or shares the teacher's weights with low-rank
        updates of rank `lora` beside them, times `alpha` / `lora` (None: 1), which begin at zero.
        """
        assert self.reference is not None
        teacher = self.reference.actor
        of: Actor = teacher if any(True for _ in teacher.model.parameters()) else self.student
        if lora is not None and of is self.student:
            raise RecipeError(
                f"critic_lora stands beside the teacher's weights, and this teacher ({type(teacher.model).__name__}) has none: it is a formula. Leave it out."
            )
        self.critic: nn.Module
        if lora is None:
            actor = copied(of)
            self.critic = actor.model
        else:
            actor, own = with_lora(of, lora, alpha)
            self.critic = nn.ParameterList(own)
        self.fake = Denoiser(actor, self.noise)
        self.fake.model.whose = "critic"
        self._fake_is = of.whose

    def make_judge(self) -> None:
        """A discriminator on the critic's features: `self.judge`, a network of noisy samples, times and conditions."""
        batch = self.begin(self.example())
        self.judge = Discriminator(self.fake, self.fresh(batch), self.drawn(batch), self.given(batch, "critic"))

    def example(self, rows: int = 16) -> Batch:
        """The first training rows, where the student is."""
        split, stored = self.data.splits["train"], self.data.encoded
        batch = split.__getitems__(list(range(min(rows, len(split)))))
        if stored is not None:  # training rows may be stored in random views alone
            batch = {**batch, "view_seed": stored.view_seeds(batch["id"], self.progress.seed, 0)}
        return on_device(self.student, batch)

    def make_target(self) -> None:
        """A second network like the student's that follows it slowly: `self.target`, asked through `self.follower`; see `follow`."""
        actor = copied(self.student)
        self.target, self.follower = actor.model, Denoiser(actor, self.noise)
        self.follower.model.whose = "target"

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
        """The batch with `x0` (data as they are denoised, where there are any) and conditions, encoded here or before (`data.encoded`)."""
        stored = self.data.encoded
        columns = self.encoded(batch) if stored is None else dict(stored(batch))
        if self._alike:
            columns |= {f"teacher.{name}": value for name, value in self.given(columns, "student").items()}
        return batch | columns

    def encoded(self, batch: Batch) -> Batch:
        """The columns that `shown` adds, but for conditions of the teacher that are the student's."""
        x0, given = self.generator.shown(batch)
        columns = {f"student.{name}": value for name, value in given.items()} | ({} if x0 is None else {"x0": x0})
        if self.reference is not None and not self._alike:
            theirs = self.reference.shown(batch, data=False)[1]
            columns |= {f"teacher.{name}": value for name, value in theirs.items()}
        return columns

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
        x = self.sampled(batch, self.grid[: place + 1])
        return {"input": x, "start": torch.full((len(x),), float(self.grid[place]), device=x.device)}

    @torch.no_grad()
    def sampled(
        self,
        batch: Batch,
        times: Float[Tensor, "steps+1"] | None = None,
        *,
        of: Denoiser | None = None,
        whose: str = "student",
        watch: Callable[[Values, Prediction, Values], Any] | None = None,
    ) -> Values:
        """What the student (or `of`, with the conditions of `whose`) makes of noise over `times` (None: all of its own), without a graph.

        Raises:
            FloatingPointError: it is not finite: in which training step, in which step of the sampler, and whose fault it is.
        """
        who, grid = of or self.generator, self.grid if times is None else times
        given, z = self.given(batch, whose), self.fresh(batch)
        how: dict[str, Any] = {"fresh": lambda step: self.fresh(batch), "watch": watch, "whose": who.model.called}
        try:
            return sample(
                lambda x, t: who(x, t, given), self.noise.sigma(grid[0]) * z, self.noise, grid, self.solver, **how
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"{self._now()}: {error}") from error

    @torch.no_grad()
    def made(self, batch: Batch) -> Values:
        """The student's samples from `input` at `start` without a graph, for those who learn from them.

        Raises:
            FloatingPointError: they are not finite: in which training step and at what times, and for whose updates they were made.
        """
        x0 = self.generated(batch)
        if not torch.isfinite(x0).all():
            rows = ~torch.isfinite(x0.flatten(1)).all(1)
            times = sorted({f"{t:.4g}" for t in batch["start"][rows].tolist()})
            before = "finite" if torch.isfinite(batch["input"][rows]).all() else "not finite either"
            raise FloatingPointError(
                f"{self._now()}: the samples of {self.generator.model.called} from time {', '.join(times)} are not finite in {int(rows.sum())} of "
                f"{len(rows)} rows; its input was {before}."
            )
        return x0

    def _now(self) -> str:
        """When samples are made, and for what."""
        return f"training step {self.progress.step}, before the updates of {' and '.join(self.trainees())}"

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

    def _asked(self) -> dict[str, Denoiser]:
        """The teachers as denoisers, by name."""
        members = self.teacher.members if self.teacher is not None else {}  # type: ignore[redundant-expr]
        if len(members) > 1 and not self.several:
            raise RecipeError(
                f"{name_of(type(self))} learns from one teacher, and there are {len(members)}: {', '.join(members)}. Give one of them, or let "
                "method=dmm make one of them first."
            )
        return {name: Denoiser(member, self.noise) for name, member in members.items()}

    @torch.no_grad()
    def _look_at_data(self) -> None:
        """Data of the wrong range are refused; a teacher whose answers look like another head's is spoken of."""
        batch = self.example()
        x, _ = self.generator.columns({name: value for name, value in batch.items() if name != "view_seed"})
        if x is not None:
            self.generator.model.refuse(x, "student")
        learnt = [who for who in self.references.values() if next(who.model.parameters(), None) is not None]
        if not learnt:
            return
        z = randomness.normal(fold(batch["id"], 0x73), *self.fresh_shape(self.shown(batch))).to(self._device(batch))
        t = self.noise.nearest(torch.full((len(z),), float(self.grid[0]), device=z.device))
        for who in learnt:
            self._listen_to(who, self.noise.sigma(t[:1]) * z, z, t, batch)

    def _listen_to(self, who: Denoiser, x: Values, z: Values, t: PerSample, batch: Batch) -> None:
        """A teacher whose answers to noise alone look like another head's is spoken of."""
        said = who(x, t, who.shown(batch, data=False)[1])
        head, called = said.head, who.model.called
        alike = float(torch.corrcoef(torch.stack([said.value.flatten(), z.flatten()]))[0, 1])
        if (head == "epsilon" and alike < 0.3) or (head in ("v", "x0") and alike > 0.9):
            other = "v or x0" if head == "epsilon" else "epsilon"
            self.notices.append(
                f"{called} is said to predict {head}; shown noise alone, its answers go with that noise by {alike:.2f} (correlation), which is more like "
                f"{other}. If it is trained, its scheduler's prediction_type (or head) is not what it was trained for."
            )

    def _refuse(self) -> None:
        """What cannot come to any good is refused before the first step."""
        if not self.guidance.none and not self.references:
            raise RecipeError(
                f"guidance={self.guidance.spec()} is a scale of the teacher's answers, and there is no teacher. Give one, or leave method.guidance out."
            )
        for who in self.references.values():
            if not self.guidance.none and not who.model.guidable:
                raise RecipeError(
                    f"guidance={self.guidance.spec()} needs a teacher that also knows what to say without the condition, and this "
                    f"{type(who.model).__name__} does not. Set method.guidance=1"
                )
            refuse_uncovered(self.noise, float(self.grid[0]), who.model.noise, who.model.whose)
