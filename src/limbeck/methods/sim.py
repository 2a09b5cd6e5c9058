"""Score implicit matching: any distance of two scores has a gradient that can be had (Luo et al. 2024)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.diffusion.implicit import score_implicit
from limbeck.method import Batch, Card, Play
from limbeck.methods.sid import SiD

Values = Float[Tensor, "batch ..."]


class SIM(SiD):
    """As `sid`, G: E -d'(y) . r, y = sigma (s_F - s_R), r = sigma (s_F - grad log q(x_t | x0)), through the inputs of F and R.

    `distance`: `huber`, sqrt(y . y / n + c^2), which normalises y and needs no nu, or `square`, which is `sid` at share 1 with
    another weight. Published: sigma 2.5 at the start (`start`). The paper's c and its weight of times we have not seen; these are ours.
    """

    card = Card(
        "sim",
        summary="One step without data: a robust distance of the teacher's and the critic's scores, with its exact gradient.",
        paper="Luo, Huang, Geng, Kolter, Qi: One-Step Diffusion Distillation through Score Implicit Matching, NeurIPS 2024, arXiv 2410.16794",
        needs=("prediction",),
        teacher_mode="through",
        use_when="as sid, where the learning rate shall matter less",
        play=Play(
            sampled="noise",
            loss="the gradient of any distance of scores, by its identity; through R and F",
            trains="the student, the critic F",
            ratio="1 : 1, the critic first",
            begins="the teacher; conditions",
        ),
        cost="as sid",
    )

    distance: Literal["huber", "square"] = "huber"
    c: Annotated[float, Field(gt=0)] = 1e-3
    share: ClassVar[float] = 1.0  # type: ignore[misc]

    def divergence(self, x0: Values, fake: Values, real: Values, batch: Batch) -> Float[Tensor, "batch"]:
        t = batch["time"]
        level = self.noise.sigma(t) / self.noise.alpha(t)
        return score_implicit(x0, fake, real, level, self.c if self.distance == "huber" else None)
