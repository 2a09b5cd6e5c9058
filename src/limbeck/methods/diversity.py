"""Diversity distillation: the base model takes the first step, where samples part, and the few-step student the rest (arXiv 2503.10637)."""

from __future__ import annotations

import copy
from collections.abc import Generator
from types import MethodType
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from limbeck.diffusion import solvers
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.guidance import guide
from limbeck.diffusion.network import DiffusionNetwork, Given, Sampling
from limbeck.diffusion.noise import wide
from limbeck.diffusion.predictors import Prediction
from limbeck.engine.pieces import rows
from limbeck.errors import RecipeError
from limbeck.method import Batch, Card, Method, Outcome, Play, Progress, Update
from limbeck.objectives import Loss
from limbeck.randomness import fold, normal
from limbeck.sources import load_model, operate

Values = Float[Tensor, "batch ..."]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Begun(Sampling):
    """Sampling whose first `switch` steps the base model takes, `taken` of the `base_steps` of its own grid, guided by `base_guidance`, by DDIM."""

    switch: Annotated[int, Field(ge=0)] = 1
    base_steps: Annotated[int, Field(ge=1)] = 20
    base_guidance: float = 7.0
    taken: Annotated[int, Field(ge=0)] = 1

    @property
    def evaluations(self) -> int:
        """The calls of both networks."""
        if not self.switch:
            return super().evaluations
        own = solvers.evaluations(self.steps - self.switch, self.solver) if self.switch < self.steps else 0
        return own + solvers.evaluations(self.taken, "ddim", self.base_guidance != 1)


def begin_with(model: DiffusionNetwork, base: dict[str, Any] | None, sampling: dict[str, Any]) -> None:
    """A surgery: the network holds a base model and begins its samples with it. `base`: how to build it; None: as the network is built itself."""
    if not hasattr(model, "base"):
        model.base = copy.deepcopy(model) if base is None else load_model(**base, whose="base").model
        model.base.requires_grad_(False)
        model.generate = MethodType(_generate, model)  # type: ignore[method-assign]
    model.sampling = Begun(**sampling)


@torch.no_grad()
def _generate(
    self: Any,
    z: Values,
    given: Given,
    *,
    sampling: Sampling | None = None,
    fresh: solvers.Fresh | None = None,
    watch: Any = None,
) -> Values:
    how = sampling or self.sampling
    if not isinstance(how, Begun) or how.switch == 0:
        return type(self).generate(self, z, given, sampling=how, fresh=fresh, watch=watch)
    noise, base = self.noise, self.base
    own, theirs = (noise.grid(steps, how.start) for steps in (how.steps, how.base_steps))

    def guided(x: Values, t: Float[Tensor, "batch"]) -> Prediction:
        said = base.prediction(x, t, given)
        if how.base_guidance == 1:
            return said
        nothing = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return guide(said, base.prediction(x, t, given, nothing), how.base_guidance)

    x = wide(noise.sigma(theirs[:1]), z) * z
    x = solvers.sample(guided, x, noise, theirs[: how.taken + 1], "ddim", watch=watch, whose=base.called)
    seeds = z.detach().float().flatten(1).contiguous().view(torch.int32).long().sum(1)

    def anew(step: int) -> Values:  # drawn from z, as in the network's own sampling
        return normal(fold(seeds, step), *z.shape[1:]).to(z.dtype)

    said = lambda x, t: self.prediction(x, t, given)  # noqa: E731
    rest, how_to = own[how.switch :], {"fresh": fresh or anew, "watch": watch, "whose": self.called}
    return solvers.sample(said, x, noise, rest, how.solver, **how_to)


class Diversity(Method):
    """x = DDIM_R(z, T -> t, guided) on the base's `base_steps`, t the one nearest to the student's `switch`-th time; then the student's own steps from t.

    Nothing is trained: the student, distilled before (a stage of the run, or a folder), is given the teacher as its base model, and is measured
    and shipped with it. The teacher shares the student's noise, and its conditions. switch=0 is the student alone, switch = its
    steps the teacher alone. The state goes over as it is, not noised anew. What either says of x0 in every step comes by `watch` of
    `model.generate` (prediction.x0).
    """

    card = Card(
        "diversity",
        summary="A few-step student whose first step the base model takes, which gives back the base's diversity.",
        paper="Gandikota, Bau: Distilling Diversity and Control in Diffusion Models, arXiv 2503.10637",
        needs=("prediction",),
        use_when="a distilled generator gives too much alike samples, and its teacher may be shipped with it",
        play=Play(
            sampled="noise",
            loss="none: the teacher takes the first steps, the student the rest",
            trains="nothing",
            ratio="",
            begins="a distilled student",
        ),
        cost="no training; a sample costs base_steps * switch / steps evaluations of the teacher more (twice that with guidance), and the memory of both",
    )

    switch: Annotated[int, Field(ge=0)] = 1
    base_steps: Annotated[int, Field(ge=1)] = 20
    base_guidance: float = 7.0

    def setup(self) -> None:
        student, base = Denoiser(self.student).model, Denoiser(self.teacher).model
        how = student.sampling
        if self.switch > how.steps:
            raise RecipeError(f"diversity.switch is {self.switch}, and the student takes {how.steps} steps in all.")
        if student.noise != base.noise:
            raise RecipeError(
                "diversity hands the base model's noisy sample to the student as it is, and the two have unlike noise: "
                f"{base.noise.spec()} and {student.noise.spec()}. Distil the student with its teacher's noise."
            )
        if self.base_guidance != 1 and not base.guidable:
            raise RecipeError(
                f"diversity.base_guidance={self.base_guidance:g} needs a base model that also knows what to say without the "
                f"condition, and this {type(base).__name__} does not. Set method.base_guidance=1"
            )
        shapes = [{k: v.shape for k, v in network.state_dict().items()} for network in (student, base)]
        alike = type(student) is type(base) and shapes[0] == shapes[1]
        spec = None if alike else self.teacher.source.spec
        if not alike and spec is None:
            raise RecipeError(
                f"the student ships with its base model, and nobody could build this {type(base).__name__} again: it was given as an object. "
                "Give the teacher as module:Class with args, or as a folder."
            )
        sampling = {"steps": how.steps, "solver": how.solver, "start": how.start, "switch": self.switch}
        own, theirs = (student.noise.grid(steps, how.start) for steps in (how.steps, self.base_steps))
        taken = int((theirs - own[self.switch]).abs().argmin())
        sampling |= {"base_steps": self.base_steps, "base_guidance": self.base_guidance, "taken": taken}
        operate(self.student.source, "limbeck.methods.diversity:begin_with", {"base": spec, "sampling": sampling})
        student.whose, student.base.whose = "student", "base model"  # type: ignore[union-attr, assignment]
        student.base.to(next(student.parameters()).device).load_state_dict(base.state_dict())  # type: ignore[union-attr, operator]
        self.student.listen_again()

    def trainees(self) -> dict[str, list[nn.Module | nn.Parameter]]:
        return {}

    def learn(self, batch: Batch, progress: Progress) -> Generator[Update, Outcome, None]:
        yield from ()

    def selection(self, batch: Batch) -> Loss:
        return Loss.mean("nothing", torch.zeros(rows(batch)))
