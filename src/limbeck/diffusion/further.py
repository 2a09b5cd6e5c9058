"""Further numbers per sample for a network that was not made for them: a guidance scale, the time to arrive at.

Each is embedded (sines and cosines, then a layer that begins at zero) and added to what the network makes of its time, so
that at first it says what it said. A number that nobody gives has its default: so the student is sampled, timed and shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.actors import Actor
from limbeck.diffusion.around import lay_around
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.errors import RecipeError
from limbeck.sources import operate

PLACES = (
    "time",
    "network.time_embedding",
    "network.time_text_embed.timestep_embedder",
    "network.adaln_single.emb.timestep_embedder",
    "network.time_embed",
)
"""Where the networks that we know embed their time."""


class Numbers(nn.Module):
    """The embeddings, and what the network was given in the call under way."""

    frequencies: Tensor

    def __init__(self, last: nn.Linear, features: int = 16) -> None:
        super().__init__()
        self.width = last.out_features
        self.last = [last]  # in a list: the layer is the network's
        self.register_buffer("frequencies", torch.logspace(-1, 1.5, features), persistent=False)
        self.layers = nn.ModuleDict()
        self.defaults: dict[str, float] = {}
        self.values: dict[str, Float[Tensor, "batch"]] = {}

    def hear(self, name: str, default: float) -> None:
        """One more number, or another default."""
        self.defaults[name] = default
        if name not in self.layers:
            layer = nn.Linear(2 * len(self.frequencies), self.width)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            self.layers[name] = layer.to(self.frequencies.device)

    def added(self, module: nn.Module, args: Any, output: Float[Tensor, "batch width"]) -> Tensor:
        """A hook: the output with all embeddings."""
        return output + self.embedded(self.values).to(output.dtype) if self.values else output

    def constant(self) -> Float[Tensor, "width"]:
        """What the defaults add."""
        return self.embedded({name: self.frequencies.new_full((1,), v) for name, v in self.defaults.items()})[0]

    def embedded(self, values: Mapping[str, Float[Tensor, "batch"]]) -> Float[Tensor, "batch width"]:
        """The sum of the embeddings of these numbers."""
        total: Any = 0
        for name, value in values.items():
            angles = value.to(self.frequencies).unsqueeze(1) * self.frequencies
            layer: Any = self.layers[name]
            waves = torch.cat([angles.sin(), angles.cos()], 1).to(layer.weight.dtype)
            total = total + layer(waves)
        return total


def hear(model: DiffusionNetwork, defaults: dict[str, float], place: str | None = None) -> None:
    """A surgery: from now on `model.predict` takes these numbers, one per sample. Repeating it changes only the defaults.

    Args:
        defaults: what is understood where a number is not given.
        place: the layer to whose output [batch, width] the embeddings are added; None: where it embeds its time.

    Raises:
        RecipeError: there is no such layer, or none that we know.
    """
    if not hasattr(model, "numbers"):
        layers = dict(model.named_modules())
        place = place or next((p for p in PLACES if p in layers), None)
        last = [m for m in layers[place].modules() if isinstance(m, nn.Linear)] if place in layers else []
        if not last:
            raise RecipeError(
                f"the {type(model).__name__} is to be given {', '.join(defaults)} beside the time, and {place or 'no layer that we know'} "
                "embeds a time there. Set method.place to the path of the layer that does (its output [batch, width] ends in a linear layer)."
            )
        model.numbers = Numbers(last[-1]).to(last[-1].weight.device)
        layers[place].register_forward_hook(model.numbers.added)  # type: ignore[index]
        lay_around(model, _asked)
    for name, default in defaults.items():
        model.numbers.hear(name, default)  # type: ignore[union-attr, operator]


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """While this lasts, what further numbers and styles add where nobody gives them stands in the bias of the layer that embeds the time.

    So a network that is written to a file of its own (a pipeline), for others who know nothing of them, says what the student says by
    itself. Networks without either are left as they are. Exact where the layer ends in that linear layer; one without a bias
    has no place for it (see `constants`).
    """
    parts = [part for part in constants(model) if part.last[0].bias is not None]
    before = [part.last[0].bias.detach().clone() for part in parts]
    try:
        with torch.no_grad():
            for part in parts:
                part.last[0].bias.add_(part.constant().to(part.last[0].bias.dtype))
        yield
    finally:
        with torch.no_grad():
            for part, bias in zip(parts, before):
                part.last[0].bias.copy_(bias)


def constants(model: nn.Module) -> list[Any]:
    """The further numbers and styles that a network was made to hear: each has a `constant()`, and the layer `last[0]` it is added behind."""
    return [part for part in (getattr(model, name, None) for name in ("numbers", "styles")) if part is not None]


def give(actor: Actor, defaults: dict[str, float], place: str | None) -> None:
    """The surgery on an actor, noted for the folder it ships in."""
    operate(actor.source, "limbeck.diffusion.further:hear", {"defaults": defaults, "place": place})
    actor.listen_again()


def _asked(model: Any, inner: Callable[..., Tensor], x: Tensor, t: Float[Tensor, "batch"], **given: Tensor) -> Tensor:
    numbers: Numbers = model.numbers
    defaults = {name: torch.full_like(t, value) for name, value in numbers.defaults.items()}
    numbers.values = {name: given.pop(name, value) for name, value in defaults.items()}
    try:
        return inner(x, t, **given)
    finally:
        numbers.values = {}
