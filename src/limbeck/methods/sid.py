"""Score identity distillation: a Fisher divergence whose gradient goes through teacher and critic (Zhou et al. 2024)."""

from __future__ import annotations

from collections.abc import Generator

from jaxtyping import Float
from torch import Tensor

from limbeck.diffusion.critic import CriticMethod
from limbeck.diffusion.implicit import score_identity
from limbeck.diffusion.times import LogNormal, TimesOption, Uniform
from limbeck.losses.scores import Weighting, normaliser
from limbeck.method import Batch, Card, Outcome, Play, Progress, Update

Values = Float[Tensor, "batch ..."]


class SiD(CriticMethod):
    """F: E w |F(x_t) - sg x0|^2 (`weighting`, levels from `critic_times`). G: E (R - F) . ((R - x0) - a (R - F)) / nu, a = `share`.

    nu = mean |x0 - R| per sample, without a graph. The student's gradient goes through x0, x_t and the inputs of F and R, whose
    parameters rest. One update of each per step, the critic's first, on samples of its own noise. Published: a = 1.2,
    sigma 2.5 at the start (for `ve` start=0.5), levels from the lower 0.8 of Karras' grid, both rates 1e-5 and a sum over
    dimensions times 100 where this is a mean. No data are needed but labels, unless `gan_weight` adds dmd2's game.
    """

    card = Card(
        "sid",
        summary="One step without data: the teacher's and the critic's scores are matched, with gradients through both.",
        paper="Zhou, Zheng, Wang, Yin, Huang: Score identity Distillation, ICML 2024, arXiv 2404.04057",
        needs=("prediction",),
        teacher_mode="through",
        use_when="there are no data but labels, and memory for the activations of three networks: samples keep more modes than by dmd2 without a GAN",
        play=Play(
            sampled="noise",
            loss="(R - F) . ((R - x0) - a (R - F)) / nu, its gradient through R and F",
            trains="the student, the critic F",
            ratio="1 : 1, the critic first, a new batch for the student",
            begins="the teacher; conditions",
        ),
        cost="per step the student's samples and the critic's forward and backward pass; then forward and backward passes through student, critic and teacher (twice with guidance)",
    )

    critic_times: TimesOption = LogNormal()
    times: TimesOption = Uniform(low=0.0, high=0.8)
    weighting: Weighting = "edm"
    share: float = 1.2

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        batch = self.begin(batch)
        own = batch | self.inputs(batch)
        yield Update("critic", self.critic_loss, self.for_critic(own, self.made(own)))
        yield Update("student", self.student_loss, self.for_student(batch | self.inputs(batch)))

    def matching(self, x0: Values, batch: Batch) -> Float[Tensor, "batch"]:
        x_t = self.noised(x0, batch)
        fake = self.followed(x_t, batch).x0
        return self.divergence(x0, fake, self.taught(x_t, batch["time"], batch).x0, batch)

    def divergence(self, x0: Values, fake: Values, real: Values, batch: Batch) -> Float[Tensor, "batch"]:
        """The divergence's surrogate per sample."""
        return score_identity(x0, fake, real, self.share) / normaliser(x0, real, 1e-5).flatten()
