"""What bridges are: modules from a student's signal to the space of the teacher's."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import RecipeError

Shape = tuple[
    int, ...
]  # of a signal, without the batch dimension: (width,), (tokens, width), (channels, height, width)


class Bridge(nn.Module):
    """A module that learns with the student. It is thrown away at export unless `ships` says that the student needs it."""

    ships: bool = False

    def words(self) -> str:
        """What it does, as part of a sentence."""
        return f"{type(self).__name__} of your own"


class Identity(Bridge):
    """Lets the signal through as it is."""

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return x

    def words(self) -> str:
        return "nothing done to it"


class Chain(Bridge):
    """Several bridges, one after the other. It ships if one of them does."""

    def __init__(self, *bridges: Bridge):
        super().__init__()
        self.steps = nn.ModuleList(bridges)
        self.ships = any(bridge.ships for bridge in bridges)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        for step in self.steps:
            x = step(x)
        return x

    def words(self) -> str:
        return ", then ".join(step.words() for step in self.steps if isinstance(step, Bridge))


def no_way(student: Shape, teacher: Shape, why: str) -> RecipeError:
    """The error for a pair that cannot be joined."""
    return RecipeError(
        f"no bridge leads from the student's {list(student)} to the teacher's {list(teacher)} (shapes of one sample): "
        f"{why}. Name another signal, or a module of your own: bridge=module:Class, called with both shapes."
    )
