"""Which of several teachers a network is to speak as: a row per teacher, added to what it makes of its time (DMM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from limbeck.diffusion.around import lay_around
from limbeck.diffusion.further import PLACES
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.errors import RecipeError

STYLE = "style"


class Styles(nn.Module):
    """The rows, which begin at zero, and which of them are asked for in the call under way; without a word, `usual`."""

    usual: Tensor

    def __init__(self, usual: Sequence[float], last: nn.Linear) -> None:
        super().__init__()
        self.last = [last]  # in a list: the layer is the network's
        self.rows = nn.Parameter(torch.zeros(len(usual), last.out_features))
        self.register_buffer("usual", torch.tensor(usual, dtype=torch.float32))
        self.weights: Float[Tensor, "batch styles"] | None = None

    def constant(self) -> Float[Tensor, "width"]:
        """What is added without a word."""
        return self.usual.to(self.rows) @ self.rows

    def ask(self, style: Int64[Tensor, "batch"] | Float[Tensor, "batch styles"] | None, count: int) -> None:
        """One style per sample by its number, or a mixture by weights."""
        if style is None:
            style = self.usual.expand(count, -1)
        self.weights = nn.functional.one_hot(style, len(self.rows)) if style.dim() == 1 else style

    def added(self, module: nn.Module, args: Any, output: Float[Tensor, "batch width"]) -> Tensor:
        """A hook: the output with the styles."""
        return output if self.weights is None else output + (self.weights.to(self.rows) @ self.rows).to(output.dtype)


def learn_styles(model: DiffusionNetwork, usual: Sequence[float], place: str | None = None) -> None:
    """A surgery: from now on `model.predict` takes `style`, a number [batch] or weights [batch, styles], one row for each of `usual`.

    Repeating it with as many styles changes only what is usual.

    Args:
        usual: the weights where none are given, one per style.
        place: the layer to whose output [batch, width] the rows are added; None: where it embeds its time.

    Raises:
        RecipeError: there is no such layer, or none that we know; it has learnt another number of styles.
    """
    known: Any = getattr(model, "styles", None)
    if known is not None:
        if len(known.rows) != len(usual):
            raise RecipeError(
                f"the student has learnt to speak as {len(known.rows)} teachers, and now there are {len(usual)}: give as many, in the same order."
            )
        known.usual.copy_(torch.tensor(usual, dtype=torch.float32))
        return
    layers = dict(model.named_modules())
    place = place or next((p for p in PLACES if p in layers), None)
    last = [m for m in layers[place].modules() if isinstance(m, nn.Linear)] if place in layers else []
    if not last:
        raise RecipeError(
            f"the {type(model).__name__} is to be told which teacher to speak as, and {place or 'no layer that we know'} embeds a time there. "
            "Set method.place to the path of the layer that does (its output [batch, width] ends in a linear layer)."
        )
    styles = Styles(usual, last[-1]).to(last[-1].weight.device)
    model.styles = styles
    layers[place].register_forward_hook(styles.added)  # type: ignore[index]
    lay_around(model, _asked)


def _asked(model: Any, inner: Callable[..., Tensor], x: Tensor, t: Float[Tensor, "batch"], **given: Tensor) -> Tensor:
    styles: Styles = model.styles
    styles.ask(given.pop(STYLE, None), len(x))
    try:
        return inner(x, t, **given)
    finally:
        styles.weights = None
