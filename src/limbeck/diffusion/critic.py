"""What methods share that have a critic: a network that follows the student's samples, and, if wanted, a discriminator on its features.

A method file states how samples are matched (`matching`), and the order of play.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.diffusion.method import DiffusionMethod
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.times import TimeDistribution, TimesOption, Uniform
from limbeck.errors import RecipeError
from limbeck.losses.adversarial import Game, fooled, told_fake, told_real
from limbeck.losses.scores import Weighting
from limbeck.method import Batch, name_of
from limbeck.objectives import Loss
from limbeck.schedules import Scalar, to_schedule

Values = Float[Tensor, "batch ..."]
PerSample = Float[Tensor, "batch"]


class CriticMethod(DiffusionMethod):
    """G: `matching`(x0) + gan_weight L(-H(x_t')). F: `following` = |F(x_t) - sg x0|^2 + critic_gan_weight (L(H(x_t')) + L(-H(real_t''))).

    Options:
        critic_lora: the critic as low-rank updates of this rank beside the teacher's weights; None: a copy of it.
        critic_lora_alpha: what these are multiplied by, over the rank; None: the rank, so by 1.
        critic_lr_ratio: the critic's learning rate over the student's, where `train.trainees` gives it none.
        critic_times: at which times the critic learns.
        weighting: in which head its error is taken (see `error`).
        gan_weight, critic_gan_weight: of the discriminator's game, for the student and for the critic; 0 for the student leaves it out,
            and with it the need for data.
        gan_times: at which times the discriminator sees samples, drawn apart for generated and real ones.
        game: `softplus`, `hinge` or `wasserstein`.
    """

    judges_own: ClassVar[bool] = False  # whether what is real to the discriminator is the method's own, not the data
    critic_lora: Annotated[int, Field(ge=1)] | None = None
    critic_lora_alpha: Annotated[int, Field(ge=1)] | None = None
    critic_lr_ratio: Annotated[float, Field(gt=0)] = 1.0
    critic_times: TimesOption = Uniform()
    weighting: Weighting = "head"
    gan_weight: Scalar = 0.0
    critic_gan_weight: Scalar = 1e-2
    gan_times: TimesOption = Uniform()
    game: Game = "softplus"

    def setup(self) -> None:
        super().setup()
        if self.critic_lora_alpha is not None and self.critic_lora is None:
            raise RecipeError(
                f"critic_lora_alpha={self.critic_lora_alpha} scales low-rank updates, and the critic is a whole network. Set method.critic_lora to their rank, or leave it out."
            )
        self.make_critic(self.critic_lora, self.critic_lora_alpha)
        self.adversarial = self.gan_weight.spec() != 0.0
        if self.adversarial:
            if not self.judges_own and "x0" not in self.shown(self.example()):
                raise RecipeError(
                    f"the discriminator of {name_of(type(self))} is shown data beside samples, and the student is shown none. Give its view the data's column, or set method.gan_weight=0"
                )
            self.make_judge()

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return super().trainees() | {"critic": [self.critic, *([self.judge] if self.adversarial else [])]}

    def lr_ratios(self) -> dict[str, float]:
        return {"critic": self.critic_lr_ratio}

    def for_student(self, batch: Batch) -> Batch:
        """What the student's update draws: times and noise at which scores are compared, and those of the discriminator."""
        return batch | self.level(batch, self.times) | self.for_the_judge(batch, "fake")

    def for_critic(self, batch: Batch, made: Values) -> Batch:
        """What the critic's update draws, and the samples that it follows."""
        drawn = self.level(batch, self.critic_times) | {"generated": made}
        return batch | drawn | self.for_the_judge(batch, "fake", "real")

    def level(self, batch: Batch, times: TimeDistribution | None = None) -> Batch:
        """`time` and `noise`: where critic and teacher are asked about samples."""
        return {"time": self.drawn(batch, times), "noise": self.fresh(batch)}

    def for_the_judge(self, batch: Batch, *kinds: str) -> Batch:
        """Times and noise at which the discriminator sees samples of these kinds."""
        if not self.adversarial:
            return {}
        times = {f"{kind}_time": self.drawn(batch, self.gan_times) for kind in kinds}
        return times | {f"{kind}_noise": self.fresh(batch) for kind in kinds}

    def student_loss(self, batch: Batch) -> Loss:
        """G's loss: `matching`, and the game."""
        x0 = self.generated(batch)
        loss = Loss.mean("matching", self.matching(x0, batch))
        if self.adversarial:
            weight = to_schedule(self.gan_weight)(self.progress)
            loss = loss + weight * Loss.mean("fooled", fooled(self.judged(x0, "fake", batch), self.game))
        return loss

    def matching(self, x0: Values, batch: Batch) -> PerSample:
        """How samples are told from the teacher's, in a value per sample whose gradient to x0 is what the student learns by."""
        raise NotImplementedError

    def critic_loss(self, batch: Batch) -> Loss:
        """F's loss: `following`, and the game."""
        loss = Loss.mean("denoising", self.following(batch["generated"], batch))
        if self.adversarial:
            weight = to_schedule(self.critic_gan_weight)(self.progress)
            fake, real = self.judged(batch["generated"], "fake", batch), self.judged(batch["x0"], "real", batch)
            loss = loss + weight * Loss.mean("told_fake", told_fake(fake, self.game))
            loss = loss + weight * Loss.mean("told_real", told_real(real, self.game))
        return loss

    def following(self, x0: Values, batch: Batch) -> PerSample:
        """The critic's denoising error of samples, noised."""
        return self.error(self.followed(self.noised(x0, batch), batch), x0, batch["time"])

    def noised(self, x0: Values, batch: Batch) -> Values:
        """x_t of samples: where teacher and critic are asked."""
        return self.noise.renoise(x0, batch["time"], batch["noise"])

    def followed(self, x_t: Values, batch: Batch, **how: Tensor | None) -> Prediction:
        """What the critic says of x_t; `guidance` and `drop` as a denoiser has them."""
        return self.fake(x_t, batch["time"], self.given(batch, "critic"), **how)  # type: ignore[arg-type]

    def judged(self, x0: Values, kind: str, batch: Batch) -> PerSample:
        """How real the discriminator finds samples, noised."""
        t = batch[f"{kind}_time"]
        return self.judge(self.noise.renoise(x0, t, batch[f"{kind}_noise"]), t, self.given(batch, "critic"))
