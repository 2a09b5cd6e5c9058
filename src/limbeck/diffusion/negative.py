"""What is not wanted, for networks that are asked once: its attention is subtracted wherever the condition is attended to (NASA).

In every cross-attention layer Z = softmax(Q K+ / sqrt d) V+ - a softmax(Q K- / sqrt d) V-, before the output projection, Q of the
wanted sample in both (Nguyen et al. 2024, "SNOOPI", section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.diffusion.around import lay_around
from limbeck.diffusion.network import DiffusionNetwork
from limbeck.diffusion.noise import wide
from limbeck.errors import RecipeError
from limbeck.listening import Enough

CONTEXT = ("encoder_hidden_states", "attention_mask", "encoder_attention_mask")
STRENGTH = "strength"
PREFIX = "negative_"


class Away:
    """The hooks, and what they are to do in the call under way."""

    def __init__(self) -> None:
        self.strength: Float[Tensor, "batch"] | None = None
        self.context: dict[str, Any] | None = None
        self.minus: Tensor | None = None
        self.inside = self.asking = False

    def attended(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a layer: note its context, or let it attend to the unwanted one first."""
        if self.asking:
            self.context = {name: kwargs[name] for name in CONTEXT if name in kwargs}
            raise Enough
        if self.context is None or self.inside:
            return
        self.inside = True
        try:
            module(*args, **{**kwargs, **self.context})
        except Enough:
            pass  # ended at its output projection, as meant
        finally:
            self.inside = False

    def projected(self, module: nn.Module, args: Any) -> Any:
        """Before its output projection: note the unwanted Z, or subtract it."""
        if self.inside:
            self.minus = args[0]
            raise Enough
        if self.minus is None or self.strength is None:
            return None
        minus, self.minus = self.minus, None
        return (args[0] - wide(self.strength, args[0]).to(minus.dtype) * minus, *args[1:])


def subtract(model: DiffusionNetwork, layers: Sequence[str] = ("attn2",)) -> None:
    """A surgery: `model.predict` also takes `strength`, a number a per sample, and conditions named `negative_...`. Without them nothing changes.

    Once is enough: repeating it changes nothing.

    Args:
        layers: how the names of the cross-attention layers end. They are called with `encoder_hidden_states=...` and have `to_out`,
            as those of diffusers. All are given the same context; it is what the first of them is given for the negative condition.

    Raises:
        RecipeError: there is no such layer.
    """
    if hasattr(model, "away"):
        return
    found = [m for name, m in model.named_modules() if name.endswith(tuple(layers)) and hasattr(m, "to_out")]
    if not found:
        raise RecipeError(
            f"a negative condition is subtracted in cross-attention layers, and the {type(model).__name__} has none whose name ends in {' or '.join(layers)}. "
            "Set method.layers to how their names end, or leave method.negative out."
        )
    away = Away()
    for layer in found:
        out: Any = layer.to_out
        layer.register_forward_pre_hook(away.attended, with_kwargs=True)  # type: ignore[call-overload]
        (out[0] if isinstance(out, (nn.ModuleList, nn.Sequential)) else out).register_forward_pre_hook(away.projected)
    model.away = away  # type: ignore[assignment]
    lay_around(model, _asked)


def _asked(model: Any, inner: Callable[..., Tensor], x: Tensor, t: Float[Tensor, "batch"], **given: Tensor) -> Tensor:
    away: Away = model.away
    strength = given.pop(STRENGTH, None)
    negative = {n.removeprefix(PREFIX): given.pop(n) for n in list(given) if n.startswith(PREFIX)}
    if strength is None or not negative:
        return inner(x, t, **given)
    away.asking = True
    try:
        inner(x, t, **negative)
    except Enough:
        pass  # it went no further than its first cross-attention
    finally:
        away.asking = False
    away.strength = strength
    try:
        return inner(x, t, **given)
    finally:
        away.strength = away.context = away.minus = None
