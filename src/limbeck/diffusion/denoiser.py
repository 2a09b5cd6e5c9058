"""A teacher, student or critic as a denoiser: `denoiser(x_t, t, given)` gives a prediction that is readable as every head."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from limbeck.actors import Actor
from limbeck.diffusion.guidance import guide
from limbeck.diffusion.network import DiffusionNetwork, Given
from limbeck.diffusion.noise import Noise, wide
from limbeck.diffusion.predictors import Prediction
from limbeck.diffusion.times import time_of_level
from limbeck.errors import RecipeError
from limbeck.signals import Signals
from limbeck.views import View

Values = Float[Tensor, "batch ..."]


class Denoiser:
    """An actor asked about noisy samples at times of `noise` (its own, unless the method speaks of another's).

    The actor's manner holds (a frozen teacher keeps no graph, one of mode `through` lets gradients reach x_t), and so do its
    taps: `heard` is what they heard in the last call.

    Raises:
        RecipeError: the actor's network is no denoising network.
    """

    def __init__(self, actor: Actor, noise: Noise | None = None):
        if not isinstance(actor.model, DiffusionNetwork):
            raise RecipeError(
                f"the {actor.whose} is a {type(actor.model).__name__}, and needed is a network that says what noise it knows and what it predicts: "
                "a diffusers pipeline folder, or your own module in limbeck.diffusion.network:Plain(network=..., noise=..., head=...)."
            )
        self.actor, self.model = actor, actor.model
        self.noise = noise or self.model.noise
        self.heard = Signals()

    def __call__(
        self,
        x: Values,
        t: Float[Tensor, "batch"],
        given: Given | None = None,
        *,
        guidance: Float[Tensor, "batch"] | float | None = None,
        drop: Bool[Tensor, "batch"] | None = None,
        instead: Given | None = None,
        **also: Tensor,
    ) -> Prediction:
        """What the network says of x_t.

        Args:
            given: its conditions, as `understood` gave them.
            guidance: a scale (per sample); None or 1.0 asks once, anything else twice.
            drop: which samples are shown no condition.
            instead: conditions of the unguided answer, in place of none (negative prompts).
            also: further inputs of the network, one row per sample.
        """
        given = {**(given or {}), **also}
        said = self._asked(x, t, given, drop)
        if guidance is None or (isinstance(guidance, (int, float)) and guidance == 1):
            return said
        if instead is not None:
            return guide(said, self._asked(x, t, {**instead, **also}, drop), guidance)
        heard = self.heard
        nothing = self._asked(x, t, given, torch.ones(len(x), dtype=torch.bool, device=x.device))
        self.heard = heard
        return guide(said, nothing, guidance)

    def shown(self, batch: Mapping[str, Any], *, data: bool = True) -> tuple[Values | None, dict[str, Tensor]]:
        """Data (as latents, where it denoises those; None without `data`) and conditions of a batch, through the actor's own view."""
        x, condition = self.columns(batch)
        return self.model.encoded(x) if data and x is not None else None, self.model.understood(condition)

    def understands_as(self, other: Denoiser) -> bool:
        """Whether both are given the same condition of a batch, and it means the same tensors to them."""
        views = [who.actor.view.spec() if who.actor.view is not None else None for who in (self, other)]
        return views[0] == views[1] and self.model.understands_as(other.model)

    def columns(self, batch: Mapping[str, Any]) -> tuple[Values | None, Any]:
        """The columns of data and of conditions as the actor's own view shows them; None where it shows none."""
        args, kwargs = self.actor.shown(batch)
        found = dict(zip(("x", "condition"), args)) | kwargs
        return found.get("x"), found.get("condition")

    def feature(self, name: str, x: Values, t: Float[Tensor, "batch"], given: Given) -> Tensor:
        """What the tap `name` hears of noisy samples; the forward pass ends there."""
        heard = self._signals(*self._own(x, t), given, None, until=name)[name]
        return heard[0] if isinstance(heard, (tuple, list)) else heard

    def _asked(
        self, x: Values, t: Float[Tensor, "batch"], given: Given, drop: Bool[Tensor, "batch"] | None
    ) -> Prediction:
        model = self.model
        own_x, own_t = self._own(x, t)
        self.heard = self._signals(own_x, own_t, given, drop)
        own_x = own_x if own_x.dtype == torch.float64 else own_x.float()
        alpha, sigma = wide(model.noise.alpha(own_t), own_x), wide(model.noise.sigma(own_t), own_x)
        said = Prediction(self.heard["prediction"], model.head, own_x, alpha, sigma, model.data_std)
        if self.noise == model.noise:
            return said
        return Prediction(said.x0, "x0", x, wide(self.noise.alpha(t), x), wide(self.noise.sigma(t), x), model.data_std)

    def _signals(
        self,
        x: Values,
        t: Float[Tensor, "batch"],
        given: Given,
        drop: Bool[Tensor, "batch"] | None,
        until: str | None = None,
    ) -> Signals:
        batch = {"x": x, "time": t, **given} | ({} if drop is None else {"drop": drop})
        usual = self.actor.view
        self.actor.view = View("x", **{name: name for name in batch if name != "x"})  # type: ignore[arg-type]
        try:
            return self.actor(batch, until=until)
        finally:
            self.actor.view = usual

    def _own(self, x: Values, t: Float[Tensor, "batch"]) -> tuple[Values, Float[Tensor, "batch"]]:
        return (x, t) if self.noise == self.model.noise else self._translated(x, t)

    def _translated(self, x: Values, t: Float[Tensor, "batch"]) -> tuple[Values, Float[Tensor, "batch"]]:
        """The same sample in the network's own schedule: at the time of the same sigma / alpha, scaled as there."""
        alpha = self.noise.alpha(t)
        own = time_of_level(self.model.noise, self.noise.sigma(t) / alpha)
        return x * wide(self.model.noise.alpha(own) / alpha, x), own


def copied(actor: Actor) -> Actor:
    """A further network like this actor's, with the same weights, of its own."""
    return Actor(copy.deepcopy(actor.model), view=actor.view)


def with_lora(
    actor: Actor, rank: int, alpha: int | None = None, targets: Sequence[str] | None = None
) -> tuple[Actor, list[nn.Parameter]]:
    """A further network on the same weights with low-rank updates beside them, which begin at zero; and their parameters.

    The weights are shared, not copied. `targets` are names of layers (or their ends); None: the projections of attention, or
    where there are none every linear layer.

    Raises:
        RecipeError: peft is not installed, or no layer has such a name.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise RecipeError("a LoRA critic needs peft: pip install 'limbeck[diffusion]'") from error
    before = [(p, p.requires_grad) for p in actor.model.parameters()]
    kept = {id(p): p for p in (*actor.model.parameters(), *actor.model.buffers())}
    model: Any = copy.deepcopy(actor.model, kept)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    attention = [n for n in linear if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    chosen = list(targets) if targets else attention or linear
    try:
        inject_adapter_in_model(
            LoraConfig(
                r=rank, lora_alpha=alpha if alpha is not None else rank, target_modules=chosen, lora_dropout=0.0
            ),
            model,
            adapter_name="critic",
        )
    except ValueError as error:
        raise RecipeError(f"no LoRA can be put beside {', '.join(chosen[:5])}: {error}") from error
    for p, learns in before:  # peft freezes what it finds, which is the actor's own
        p.requires_grad_(learns)
    own = [p for p in model.parameters() if id(p) not in kept]
    return Actor(model, view=actor.view), own
