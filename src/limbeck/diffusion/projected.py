"""A discriminator of clean samples: small heads, one per scale, on features that do not learn (Sauer et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limbeck.actors import Actor
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.network import Given
from limbeck.errors import RecipeError
from limbeck.views import View

Values = Float[Tensor, "batch ..."]


def gradient_penalty(score: Callable[[Values], Float[Tensor, "batch"]], x: Values) -> Float[Tensor, "batch"]:
    """|d score / d x|^2 per sample, with a graph to the score's own parameters.

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9 (R1, without gamma / 2).
    """
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(x).sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1)


class Projected(nn.Module):
    """H_k(x), k over the places where features are heard: [batch, heads]. Only `heads` are meant to learn.

    Args:
        trunk: a denoiser of this module's own (a copy), asked at its least noise; not used with `features`.
        x, given: an example, from which widths are known.
        features: `module:Class` of another network, shown the samples alone.
        layers: paths in it; None: the denoiser's own middle.

    Raises:
        RecipeError: no layers are named, and there is no middle that is known.
    """

    trunk: Denoiser | None
    actor: Actor

    def __init__(
        self,
        trunk: Denoiser,
        x: Values,
        given: Given,
        *,
        features: str | None = None,
        layers: Sequence[str] | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "trunk", trunk if features is None else None)
        object.__setattr__(self, "actor", trunk.actor if features is None else Actor(features, view=View("x")))
        middle = [trunk.model.middle] if features is None and trunk.model.middle else []
        self.paths = list(layers or middle)
        if not self.paths:
            raise RecipeError(
                "a discriminator on frozen features needs to know where to listen. Set method.layers to paths in the network "
                "(limbeck inspect MODEL lists them)."
            )
        for path in self.paths:
            self.actor.tap(f"judged.{path}", path)
        self.frozen = self.actor.model.requires_grad_(False).to(x.device)
        with torch.no_grad():
            found = self.places(x, given)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(f.shape[-1], width), nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, 1))
            for f in found
        ).to(x.device)

    def forward(self, x: Values, given: Given) -> Float[Tensor, "batch heads"]:
        found = zip(self.heads, self.places(x, given), strict=True)
        return torch.stack([head(f).flatten(1).mean(1) for head, f in found], 1)

    def places(self, x: Values, given: Given) -> list[Float[Tensor, "batch places channels"]]:
        """What is heard, as places of channels: maps [B, C, ...] and tokens [B, N, C] have many, vectors one."""
        if self.trunk is None:
            heard = self.actor({"x": x}, reads=[f"judged.{path}" for path in self.paths])
        else:
            first = self.trunk.noise.first
            self.trunk(x, torch.full((len(x),), first, device=x.device), given)
            heard = self.trunk.heard
        found = [heard[f"judged.{path}"] for path in self.paths]
        found = [f[0] if isinstance(f, (tuple, list)) else f for f in found]
        return [f.flatten(2).transpose(1, 2) if f.dim() > 3 else f.unsqueeze(1) if f.dim() == 2 else f for f in found]
