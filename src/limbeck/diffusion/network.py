"""A denoising network together with what one must know to use it: its noise, its head, its conditions, how it is sampled.

Called with a time it predicts, `{"prediction": y}`; called without, on plain columns of data, it generates one sample per
row, `{"generated": x}`: so a generator is measured, timed and shipped as any other network is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from limbeck.diffusion import solvers
from limbeck.diffusion.guidance import guide
from limbeck.diffusion.noise import Noise, to_noise, wide
from limbeck.diffusion.predictors import DATA_STD, Prediction, known_head
from limbeck.errors import RecipeError
from limbeck.randomness import fold, normal
from limbeck.sources import import_from
from limbeck.tasks import GENERATED

Values = Float[Tensor, "batch ..."]
Given = Mapping[str, Tensor]
"""What a network is given beside the noisy sample and the time, by the keywords of its `forward`."""

_CLASSES = ("label", "class", "y", "condition")
_TEXTS = ("prompt", "text", "caption", "condition")


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Sampling:
    """How samples are made: `steps` of a solver from the share `start` of the noise, guided."""

    steps: Annotated[int, Field(ge=1)] = 20
    solver: solvers.Solver = "ddim"
    guidance: float = 1.0
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    start: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def evaluations(self) -> int:
        """How often the network is called for one sample (NFE)."""
        return solvers.evaluations(self.steps, self.solver, self.guidance != 1)


def sample_with(model: nn.Module, **sampling: Any) -> None:
    """Have a network sample in this way from now on. A surgery (`limbeck.sources.operate`), so a shipped student knows."""
    model.sampling = Sampling(**sampling)  # type: ignore[assignment]


class DiffusionNetwork(nn.Module):
    """What all denoising networks share; a family fills in `predict`, and `conditioned` where it is conditional.

    Args:
        noise: the schedule that it was (or will be) trained with.
        head: what it predicts.
        shape: of one sample; None: as the data's column is.
        data_std: standard deviation of the data, for the `edm` head.

    Attributes:
        conditions: `none`, `class` or `text`.
        guidable: whether it knows what to say without the condition.
        middle: the path of its middle layer, whose features a discriminator may stand on; None: nobody has said.
        whose: what part it has in a run (`student`, `teacher`), for sentences about it.
    """

    conditions: str = "none"
    guidable: bool = False
    middle: str | None = None
    whose: str = "network"

    def __init__(
        self, noise: Any, head: str, *, shape: Iterable[int] | None = None, data_std: float = DATA_STD
    ) -> None:
        super().__init__()
        self.noise: Noise = to_noise(noise)
        self.head = known_head(head)
        self.shape = tuple(shape) if shape is not None else None
        self.data_std = data_std
        self.sampling = Sampling()

    def predict(self, x: Values, t: Float[Tensor, "batch"], **given: Tensor) -> Values:
        """The head's value for noisy samples (scaled for `edm`) at these times."""
        raise NotImplementedError

    @property
    def called(self) -> str:
        """This network in a sentence."""
        return f"the {self.whose} ({type(self).__name__})"

    def refuse(self, x: Values, whose: str) -> None:
        """Refuse data that are not what this network denoises: of another range, or latents of another scale."""

    def encoded(self, x: Values) -> Values:
        """Data as they are denoised: latents, where the network lives among them."""
        return x

    def decoded(self, x: Values) -> Values:
        """What was denoised as data again."""
        return x

    def encoders(self) -> dict[str, nn.Module]:
        """Who makes latents of data and tensors of texts, by name; they never learn, so what they say can be stored."""
        return {}

    def understands_as(self, other: DiffusionNetwork) -> bool:
        """Whether the same condition means the same tensors to both, so that it is encoded once."""
        return False

    def understood(self, condition: Any) -> dict[str, Tensor]:
        """A column of conditions as tensors by the keywords of `predict`: labels as they are, texts as a text encoder has them."""
        return {} if condition is None else {"condition": condition}

    def conditioned(self, given: Given, drop: Bool[Tensor, "batch"] | None) -> dict[str, Tensor]:
        """The condition with that of nothing in the place of those which `drop` names."""
        if drop is not None and not self.guidable:
            raise RecipeError(
                f"{type(self).__name__} does not know what to say without its condition (it was trained with one always, or has none), "
                "so it cannot be guided. Set guidance=1, or give a network that was trained with dropped conditions."
            )
        return dict(given)

    def view_for(self, columns: Iterable[str]) -> Any:
        """Which columns it is shown, by their usual names; None where none has one."""
        there = list(columns)
        data = next((name for name in GENERATED if name in there), None)
        named = {"id": "id"}
        names = {"class": _CLASSES, "text": _TEXTS}.get(self.conditions, ())
        condition = next((name for name in names if name in there), None)
        if self.conditions != "none" and condition is None:
            return None
        named |= {} if condition is None else {"condition": condition}
        if data is not None:
            return {"keys": [data], "named": named}
        return {"named": named} if condition is not None and self.shape is not None else None

    def forward(
        self,
        x: Values | None = None,
        condition: Any = None,
        *,
        id: Int[Tensor, "batch"] | None = None,
        time: Float[Tensor, "batch"] | None = None,
        drop: Bool[Tensor, "batch"] | None = None,
        **given: Tensor,
    ) -> dict[str, Tensor]:
        """With a time: the head's value for noisy samples `x`. Without: a sample per row, from noise that `id` alone decides."""
        if time is None:
            made = self.decoded(self.generate(self.noise_for(x, id), self.understood(condition)))
            if not torch.isfinite(made).all():
                raise FloatingPointError(
                    f"the samples of {self.called} are finite, and what is decoded of them is not. If its autoencoder computes in "
                    "half precision, let it compute in full."
                )
            return {"generated": made}
        given = given if condition is None else given | {"condition": condition}
        return {"prediction": self.prediction(x, time, given, drop).value}  # type: ignore[arg-type]

    def prediction(
        self, x: Values, t: Float[Tensor, "batch"], given: Given, drop: Bool[Tensor, "batch"] | None = None
    ) -> Prediction:
        """What it says of noisy samples, readable as any head; at least fp32, whatever it computes in."""
        alpha, sigma = wide(self.noise.alpha(t), x), wide(self.noise.sigma(t), x)
        own = x
        if self.head == "edm":  # networks of this kind expect inputs of unit variance
            own = x / (alpha * ((sigma / alpha).square() + self.data_std**2).sqrt())
        own = own.to(next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype))
        value = self.predict(own, t, **self.conditioned(given, drop))
        value = value if value.dtype == torch.float64 else value.float()
        return Prediction(value, self.head, x if x.dtype == torch.float64 else x.float(), alpha, sigma, self.data_std)

    def noise_for(self, x: Values | None, id: Int[Tensor, "batch"] | None) -> Values:
        """Standard normal noise per row that depends on its number alone, or else on the bits of what stands in `x`."""
        shape = self.shape if self.shape is not None else None if x is None else tuple(x.shape[1:])
        if shape is None or (x is None and id is None):
            raise RecipeError(
                f"{type(self).__name__} is to generate and is shown no sample to know the shape from: give it its shape, and a view with the column id."
            )
        if id is None:
            assert x is not None
            bits = x.detach().float().contiguous().flatten(1).view(torch.int32).long()
            places = torch.arange(1, bits.shape[1] + 1, device=bits.device)
            id = (fold(bits.flatten(), 1).view_as(bits) * places).sum(1)
        return normal(fold(id, 0x6E), *shape)

    def generate(
        self,
        z: Values,
        given: Given,
        *,
        sampling: Sampling | None = None,
        fresh: solvers.Fresh | None = None,
        watch: Any = None,
    ) -> Values:
        """Samples out of standard normal `z`, with `sampling` or as the network is sampled by itself; latents stay latents."""
        how = sampling or self.sampling
        times = self.noise.grid(how.steps, how.start)
        refuse_blind(self.noise, self.head, float(times[0]))

        def denoise(x: Values, t: Float[Tensor, "batch"]) -> Prediction:
            said = self.prediction(x, t, given)
            if how.guidance == 1:
                return said
            nothing = torch.ones(len(x), dtype=torch.bool, device=x.device)
            return guide(said, self.prediction(x, t, given, nothing), how.guidance)

        if fresh is None:  # drawn from z, so that a sample does not depend on its neighbours
            seeds = (z.detach().float().flatten(1).contiguous().view(torch.int32).long()).sum(1)

            def fresh(step: int) -> Values:
                return normal(fold(seeds, step), *z.shape[1:]).to(z.dtype)

        start = wide(self.noise.sigma(times[:1]), z) * z
        how_to: dict[str, Any] = {"eta": how.eta, "fresh": fresh, "watch": watch, "whose": self.called}
        return solvers.sample(denoise, start, self.noise, times, how.solver, **how_to)


def refuse_blind(noise: Noise, head: str, start: float) -> None:
    """Refuse to begin where a head says nothing of the data: noise alone tells nothing of x0 where alpha is 0.

    Raises:
        RecipeError: an epsilon or score head, and no data left at the start.
    """
    if head in ("epsilon", "score") and float(noise.alpha(torch.tensor(start, dtype=torch.float64))) == 0:
        raise RecipeError(
            f"the network predicts {head}, and sampling is to begin where nothing of the data is left (alpha = 0), at which {head} says nothing of "
            "them. Begin a little lower (start=0.999), or take a network that predicts v, velocity or x0."
        )


class Conditional(DiffusionNetwork):
    """A network that knows `classes` classes, and one more label, `classes`, that says nothing."""

    guidable = True

    def __init__(self, noise: Any, head: str, *, classes: int | None = None, **options: Any) -> None:
        super().__init__(noise, head, **options)
        self.classes = classes
        self.conditions = "class" if classes else "none"
        self.guidable = bool(classes)

    def conditioned(self, given: Given, drop: Bool[Tensor, "batch"] | None) -> dict[str, Tensor]:
        given = super().conditioned(given, drop)
        if drop is not None:
            given["condition"] = torch.where(drop, self.classes, given["condition"])  # type: ignore[arg-type]
        return given


class Plain(Conditional):
    """Somebody's own denoising module: `network(x, time)`, or `network(x, time, label)` where it knows classes.

    As a teacher or student of a recipe: `{model: "limbeck.diffusion.network:Plain", args: {network: "my_models:Net", noise: flow,
    head: velocity, classes: 10}}`. Times are as the schedule feeds them (VP: step, VE: log(sigma) / 4, flows: t).
    The label `classes` stands for no condition.
    """

    def __init__(
        self, network: str | nn.Module, noise: Any, head: str, *, args: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(noise, head, **options)
        if isinstance(network, str):
            made = import_from(network, "network")
            network = made if isinstance(made, nn.Module) else made(**(args or {}))
        self.network: nn.Module = network

    def predict(self, x: Values, t: Float[Tensor, "batch"], **given: Tensor) -> Values:
        return self.network(x, self.noise.fed(t).to(x.dtype), *given.values())
