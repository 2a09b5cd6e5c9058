"""What a network said about a batch, and where to listen in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import RecipeError, nearest

OUTPUT = "output"


@dataclass(frozen=True)
class Projection:
    """A signal that is not multiplied out: logits z = hidden @ weight.T + bias, scaled and capped, say those of a large vocabulary.

    A loss that knows about it reads the factors and never holds the product; `materialise()` gives the product.

    Attributes:
        scale: what a model multiplies its logits by (one over it, where a model divides).
        softcap: c in c * tanh(z * scale / c), after scaling; None caps nothing.
    """

    hidden: Float[Tensor, "... width"]
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, "classes"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def materialise(self) -> Float[Tensor, "... classes"]:
        """The product, scaled and capped, shape `[..., classes]`."""
        logits = nn.functional.linear(self.hidden, self.weight, self.bias)
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def shape(self) -> torch.Size:
        """The shape that the product would have."""
        return torch.Size([*self.hidden.shape[:-1], self.weight.shape[0]])


def weighted_sum(
    sides: Sequence[tuple[Projection, float]], classes: int | None = None
) -> Projection | Float[Tensor, "... classes"]:
    """sum of share * logits: again a projection, of all hidden states side by side; multiplied out where one is soft-capped.

    `classes`: only the first so many, which all sides have.
    """
    if any(side.softcap is not None for side, _ in sides):
        return sum(share * side.materialise()[..., :classes] for side, share in sides)  # type: ignore[return-value]
    dtype = sides[0][0].hidden.dtype
    for side, _ in sides:
        dtype = torch.promote_types(dtype, side.hidden.dtype)
    hidden = torch.cat([side.hidden.to(dtype) for side, _ in sides], -1)
    weight = torch.cat([side.weight[:classes].to(dtype) * (share * side.scale) for side, share in sides], -1)
    biases = [side.bias[:classes] * (share * side.scale) for side, share in sides if side.bias is not None]
    return Projection(hidden, weight, sum(biases[1:], biases[0]) if biases else None)


@dataclass(frozen=True)
class Head:
    """The last linear layer of a language model, kept apart so that its product with all tokens is never made.

    Attributes:
        scale, softcap: as in `Projection`.
        keywords: arguments of the model's forward that keep it from making the product.
        hidden: the tap on what the layer is given.
    """

    scale: float = 1.0
    softcap: float | None = None
    keywords: Mapping[str, Any] = field(default_factory=dict)
    hidden: str = "hidden"

    def of(self, model: Any, hidden: Float[Tensor, "... width"]) -> Projection:
        """The logits for what the layer would be given; the layer is the model's `get_output_embeddings()`."""
        layer = model.get_output_embeddings()
        return Projection(hidden, layer.weight, getattr(layer, "bias", None), self.scale, self.softcap)


class Signals(dict[str, Any]):
    """The named values that a model gave for one batch; an unknown name is answered with the names there are."""

    def __missing__(self, name: str) -> Any:
        raise RecipeError(
            f"there is no signal '{name}'. {nearest(name, self)} Other places are named with taps={{name: path}}."
        )


@dataclass(frozen=True)
class Tap:
    """A place in a network: the path of a submodule and what to take there.

    Paths: `output` is what the model returns, `output.1` or `output.logits` a part of it; `encoder.layer3` is what that
    submodule returns, `encoder.layer3.0` the first of several; a trailing `:input` takes what goes into the submodule
    (its first argument) and not what comes out.
    """

    path: str

    def resolve(self, model: nn.Module) -> Place:
        """Split the path into a submodule of `model` and a selection inside its value.

        Raises:
            RecipeError: no submodule has this path; the closest ones are named.
        """
        path, _, end = self.path.partition(":")
        if end not in ("", "input"):
            raise RecipeError(
                f"tap '{self.path}': after a colon stands 'input' (or nothing for the output), not '{end}'."
            )
        parts = path.split(".")
        if parts[0] == OUTPUT and not hasattr(model, OUTPUT):
            return Place("", tuple(parts[1:]), end == "input")
        modules = dict(model.named_modules(remove_duplicate=False))  # a shared layer has several paths
        for length in range(len(parts), 0, -1):
            name = ".".join(parts[:length])
            if name in modules:
                return Place(name, tuple(parts[length:]), end == "input")
        raise RecipeError(
            f"tap '{self.path}': {type(model).__name__} has no such place. {nearest(path, [n for n in modules if n])} "
            "All places with their shapes: limbeck inspect MODEL."
        )


@dataclass(frozen=True)
class Place:
    """A resolved tap: a submodule ('' is the model itself), keys into its value, and whether its input is meant."""

    module: str
    keys: tuple[str, ...]
    input: bool


def select(value: Any, keys: Iterable[str]) -> Any:
    """The part of a module's value that `keys` names: attributes, mapping keys or positions, one after another."""
    for key in keys:
        if isinstance(value, Mapping):
            if key not in value:
                raise RecipeError(f"the value has no part '{key}'. {nearest(key, map(str, value))}")
            value = value[key]
        elif isinstance(value, (tuple, list)) and key.lstrip("-").isdigit():
            if not -len(value) <= int(key) < len(value):
                raise RecipeError(f"part {key} was asked of a value of {len(value)} parts.")
            value = value[int(key)]
        elif hasattr(value, key):
            value = getattr(value, key)
        else:
            raise RecipeError(f"a {type(value).__name__} has no part '{key}'.")
    return value


def put(value: Any, keys: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    """`value` with the part that `keys` names replaced by `change(part)`; containers are copied, never written into."""
    if not keys:
        return change(value)
    key, rest = keys[0], keys[1:]
    inner = put(select(value, [key]), rest, change)
    if isinstance(value, Mapping):
        copied = type(value)(value)  # type: ignore[call-arg]  # ModelOutput and dict alike
        copied[key] = inner  # type: ignore[index]
        return copied
    if isinstance(value, (tuple, list)):
        items = list(value)
        items[int(key)] = inner
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    raise RecipeError(
        f"a part of a {type(value).__name__} cannot be replaced; tap a submodule that returns the tensor."
    )


def named_tensors(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor inside a model's value, by dotted name; a bare tensor has the name ''."""
    if isinstance(value, Tensor):
        return {prefix: value}
    if isinstance(value, Mapping):
        items: Iterable[tuple[str, Any]] = ((str(k), v) for k, v in value.items())
    elif isinstance(value, (tuple, list)):
        items = ((str(i), v) for i, v in enumerate(value))
    else:
        return {}
    return {n: t for key, v in items for n, t in named_tensors(v, f"{prefix}.{key}" if prefix else key).items()}


def _is_signal(value: Any) -> bool:
    """A tensor, or texts: one string per sample."""
    texts = isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
    return texts or isinstance(value, (Tensor, Projection))


def signals_of_output(value: Any, whose: str) -> Signals:
    """Name what a model returned when the user named nothing: a tensor is `logits`, a mapping keeps its own names.

    Raises:
        RecipeError: several unnamed tensors (a tuple): which one is which must be said.
    """
    if isinstance(value, Tensor):
        return Signals(logits=value)
    if isinstance(value, Projection):
        return Signals(logits=value)
    if isinstance(value, Mapping):
        return Signals({k: v for k, v in {**dict(value), **named_tensors(value)}.items() if _is_signal(v)})
    if isinstance(value, (tuple, list)):
        tensors = [item for item in value if isinstance(item, Tensor)]
        if len(tensors) == 1:
            return Signals(logits=tensors[0])
        shapes = " and ".join(str(list(t.shape)) for t in tensors)
        names = ["logits", "embedding"] + [f"signal{i}" for i in range(2, len(tensors))]
        places = ", ".join(
            f"{n}: output.{i}" for i, n in zip([i for i, v in enumerate(value) if isinstance(v, Tensor)], names)
        )
        raise RecipeError(
            f"the {whose} returned a tuple of {len(value)} tensors, {shapes}; name them: {whose}.taps={{{places}}}"
        )
    raise RecipeError(
        f"the {whose} returned a {type(value).__name__}; Limbeck reads tensors, tuples, mappings and ModelOutputs."
    )
