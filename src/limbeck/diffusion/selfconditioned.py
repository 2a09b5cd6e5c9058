"""Self-conditioning on features: what a layer has understood is pooled and told to the layers behind it, beside the time.

c' = c + a(t) W p, p the mean of the layer's tokens: where a network hears the embedding c of its time, it hears c' from that
layer on. W begins at zero, so at first the network says what it said; a(t) = 1 + waves of t, through a layer that begins at zero.

Source: Xiang et al. 2025, "DDAE++", arXiv 2505.10999 (equations not published as code; a(t) is our reading of its
"time-adaptive scaling"). Not to be confused with self-conditioning on the last estimate of the data (Analog Bits).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.actors import Actor
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.further import PLACES
from limbeck.diffusion.network import DiffusionNetwork, Given
from limbeck.errors import RecipeError, nearest
from limbeck.signals import Tap, select
from limbeck.sources import operate

Values = Float[Tensor, "batch ..."]

_HEARS = {
    r"hidden\.\d+": "output",
    r"inner\.\d+|down|up": "second",
    r"network\..*resnets\.\d+": "second",
    r"network\..*\.norm1\.emb": "output",
    r"network\.(.*\.)?(norm1|norm1_context|norm_out)\.silu": "first",
}
"""Where the networks that we know hear the embedding: it is (a part of) what a module gives, or the module's second or first argument."""


class Listener(NamedTuple):
    """A module that hears the embedding: by what it gives (`output`) or takes (`first`, `second` argument), and how wide that is."""

    path: str
    by: str
    width: int


def pooled(h: Any) -> Float[Tensor, "batch channels"]:
    """The mean over places of a map [B, C, ...] or of tokens [B, N, C]; vectors stay. Of several values the first."""
    h = h[0] if isinstance(h, (tuple, list)) else h
    return h.flatten(2).mean(2) if h.dim() > 3 else h.mean(1) if h.dim() == 3 else h


def channels(actor: Actor, tap: str) -> int:
    """How many numbers the pooled value of a tap has, after the probe.

    Raises:
        RecipeError: it gave no tensor.
    """
    if tap not in actor.shapes:
        raise RecipeError(
            f"{actor.paths[tap]}: no tensor is given there by the {actor.whose} ({type(actor.model).__name__}). Name a layer in method.layer, or a part "
            "of what it gives (its path and .0); limbeck inspect MODEL lists them."
        )
    return pooled(torch.empty(1, *actor.shapes[tap])).shape[1]


def listeners(model: DiffusionNetwork, into: list[str] | None = None) -> list[Listener]:
    """Who hears the embedding: those that we know, or the layers `into`, to whose output [B, ..., width] it is added.

    Raises:
        RecipeError: there is no such layer, one is no linear layer, or they are of several widths.
    """
    layers = dict(model.named_modules())
    for path in into or ():
        if path not in layers or not _linear(layers[path]):
            raise RecipeError(
                f"method.into names {path}, and {type(model).__name__} has no layer there that ends in a linear one. {nearest(path, layers)}"
            )
    if into is not None:
        found = [Listener(path, "output", _linear(layers[path])[-1].out_features) for path in into]
    else:
        kinds = {path: by for path in layers for known, by in _HEARS.items() if re.fullmatch(known, path)}
        found = [Listener(path, by, width) for path, by in kinds.items() if (width := _width(layers, path, by))]
    if len({one.width for one in found}) > 1:
        told = ", ".join(f"{one.path} {one.width}" for one in found)
        raise RecipeError(
            f"the layers that are to hear one vector take vectors of several widths ({told}); name others in method.into."
        )
    return found


def layer_for(model: DiffusionNetwork, layer: str | None = None, into: list[str] | None = None) -> str:
    """The layer to be heard: the one that is named, or the network's middle, or the one before where nobody listens behind that.

    Raises:
        RecipeError: none is named, and no middle is known.
    """
    if layer is not None:
        return layer
    middle, hear = model.middle, [one.path for one in listeners(model, into)]
    if middle is None:
        raise RecipeError(
            f"{type(model).__name__} does not say which of its layers is the middle: set method.layer to the path of the one to be heard."
        )
    return hear[-2] if hear[-1:] == [middle] and len(hear) > 1 else middle


class Route(nn.Module):
    """The way from a layer to those behind it: W, a(t), and what was said in the pass under way."""

    def __init__(self, layer: str, features: int, width: int, ends: tuple[float, float]) -> None:
        super().__init__()
        self.layer, self.ends, self.now = layer, ends, _Pass()
        self.keys: tuple[str, ...] = ()
        self.scale, self.map = nn.Linear(16, 1), nn.Linear(features, width, bias=False)
        for p in self.parameters():
            nn.init.zeros_(p)

    def amount(self, time: Float[Tensor, "batch"]) -> Float[Tensor, "batch 1"]:
        """a(t), t as the network is fed it, from `ends[0]` to `ends[1]`."""
        time = time if time.dtype == torch.float64 else time.float()
        share = (time - self.ends[0]) / (self.ends[1] - self.ends[0])
        angles = share.unsqueeze(1) * torch.logspace(0, 1.5, 8, dtype=share.dtype, device=share.device)
        return 1 + self.scale(torch.cat([angles.sin(), angles.cos()], 1).to(self.scale.weight.dtype))

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """A hook before the first module that is given the time: a new pass, in which nothing was said yet."""
        values = (*args, *kwargs.values())
        self.now.time = next(v for v in values if isinstance(v, Tensor) and v.dim() == 1)
        self.now.told, self.now.heard = None, 0

    def listen(self, module: nn.Module, args: Any, output: Any) -> None:
        """A hook on the layer: from now on, a(t) W p."""
        p = pooled(select(output, self.keys)).to(self.map.weight.dtype)
        assert self.now.time is not None
        self.now.told = self.amount(self.now.time) * self.map(p)

    def output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """A hook on a module that gives (a part of) the embedding."""
        return output if self._told() is None else self._with(output)

    def first(self, module: nn.Module, args: tuple) -> tuple:
        """A hook before a module whose first argument is the embedding."""
        return args if self._told() is None else (self._with(args[0]), *args[1:])

    def second(self, module: nn.Module, args: tuple) -> tuple:
        """A hook before a module whose second argument is the embedding."""
        return args if self._told() is None else (args[0], self._with(args[1]), *args[2:])

    def _told(self) -> Tensor | None:
        if torch._C._current_graph_task_id() != -1:
            raise RecipeError(
                "a block of a self-conditioned network is computed a second time in the backward pass, and what was told to it is gone by then. "
                "Set train.gradient_checkpointing=false (args.checkpointing=false of a diffusers network), or method.self_condition=false."
            )
        return self.now.told

    def _with(self, embedding: Float[Tensor, "batch ... width"]) -> Tensor:
        assert self.now.told is not None
        self.now.heard += 1
        told = self.now.told.to(embedding.dtype)
        return embedding + told.reshape(len(told), *[1] * (embedding.dim() - 2), -1)


class _Pass:
    """What one forward pass has come to: its time, what is told from here on, and how many heard it. A copied network begins anew."""

    def __init__(self) -> None:
        self.time: Float[Tensor, "batch"] | None = None
        self.told: Float[Tensor, "batch width"] | None = None
        self.heard = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pass:
        return _Pass()


def condition(model: DiffusionNetwork, layer: str, features: int, into: list[str] | None = None) -> None:
    """A surgery: from now on the layers behind `layer` hear its pooled value, of so many `features`. Repeating it changes nothing.

    Args:
        layer: a path, as taps have it.
        into: layers to whose output [B, ..., width] it is added; None: where the network is known to hear its time's embedding.

    Raises:
        RecipeError: nobody is known to listen, nothing is known to be given the time, or another layer is told already.
    """
    if isinstance(known := getattr(model, "route", None), Route):
        if known.layer != layer:
            raise RecipeError(
                f"the network is conditioned on its layer {known.layer} already; set method.layer={known.layer}"
            )
        return
    place, layers, found = Tap(layer).resolve(model), dict(model.named_modules()), listeners(model, into)
    clock = next((path for path in ("network", *PLACES) if path in layers), None)
    if not found or clock is None or not place.module or place.input:
        problem = (
            "no layer that we know hears the embedding of its time"
            if not found
            else f"'{layer}' is no layer of it whose value can be told"
        )
        problem = "nothing that we know is given its time" if clock is None else problem
        raise RecipeError(
            f"the {type(model).__name__} is to be conditioned on its own features, and {problem}. Name the layers to whose output "
            "the embedding is added: method.into=[path, ...], or set method.self_condition=false"
        )
    times = torch.tensor([model.noise.first, model.noise.last], dtype=torch.float64)
    low, high = model.noise.fed(times).tolist() if clock == "network" else (0.0, 1.0)  # our own are given shares
    like = next(p for p in model.parameters() if p.is_floating_point())
    route = Route(layer, features, found[0].width, (low, high)).to(like.device, like.dtype)
    route.keys = place.keys
    layers[clock].register_forward_pre_hook(route.begin, with_kwargs=True)
    for one in found:  # before the layer itself is heard, which may be one of them
        hook = getattr(route, one.by)
        module = layers[one.path]
        module.register_forward_hook(hook) if one.by == "output" else module.register_forward_pre_hook(hook)
    layers[place.module].register_forward_hook(route.listen)
    model.route = route


def self_condition(actor: Actor, layer: str, features: int, into: list[str] | None = None) -> list[str]:
    """The surgery on an actor, noted for the folder it ships in; gives sentences that a person should read."""
    structure = {"layer": layer, "features": features, "into": into}
    operate(actor.source, "limbeck.diffusion.selfconditioned:condition", structure)
    actor.listen_again()
    if getattr(actor.model, "family", None) != "of_diffusers":
        return []
    return [
        "the pipeline in the student's folder knows nothing of the features that the network is told: open the folder itself, with limbeck."
    ]


@torch.no_grad()
def refuse_unheard(denoiser: Denoiser, x: Values, given: Given) -> None:
    """Refuse where nothing behind the layer hears what it tells, by trying.

    Raises:
        RecipeError: an earlier layer is needed.
    """
    denoiser(x, torch.full((len(x),), denoiser.noise.last, device=x.device), given)
    route = denoiser.model.route
    if isinstance(route, Route) and not route.now.heard:
        raise RecipeError(
            f"behind {route.layer} no layer of this {type(denoiser.model).__name__} hears the embedding of the time, so nothing would come of "
            "its features. Set method.layer to an earlier one."
        )


def _linear(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _width(layers: dict[str, nn.Module], path: str, by: str) -> int:
    """How wide the embedding is there; 0 where the module turns out to hear none."""
    if by == "output":
        return _linear(layers[path])[-1].out_features if _linear(layers[path]) else 0
    beside = path.rpartition(".")[0]
    names = (f"{path}.embedding", f"{path}.time_emb_proj") if by == "second" else (f"{beside}.linear",)
    first = by == "first" and f"{beside}.emb" in layers  # such a one has its own embedding, which is heard there
    layer: Any = next((layers[name] for name in names if name in layers), None)
    return 0 if layer is None or first else layer.in_features
