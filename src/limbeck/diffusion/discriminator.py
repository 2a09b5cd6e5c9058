"""A discriminator that stands on the features of a denoising network: a small head on its middle layer."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.network import Given
from limbeck.errors import RecipeError

NAME = "judged"


class Discriminator(nn.Module):
    """H(x_t, t): the trunk's feature at `path` (default: its network's own `middle`), a hidden layer, and one number per sample.

    Numbers of the places of a map [B, C, ...] or of tokens [B, N, C] are averaged. The trunk is not this module's: who
    trains it is a matter of the trainees. `x`, `t`, `given` is an example, from which the width is known.
    """

    trunk: Denoiser

    def __init__(
        self,
        trunk: Denoiser,
        x: Float[Tensor, "batch ..."],
        t: Float[Tensor, "batch"],
        given: Given,
        *,
        path: str | None = None,
        width: int = 64,
    ) -> None:
        super().__init__()
        object.__setattr__(self, "trunk", trunk)
        path = path or trunk.model.middle
        if path is None:
            raise RecipeError(
                f"a discriminator stands on a middle layer of the critic's network, and {type(trunk.model).__name__} does not say which of its "
                "layers that is: set its attribute `middle` to the path of one."
            )
        trunk.actor.tap(NAME, path)
        places = self._places(x, t, given)
        self.hidden, self.norm, self.output = (
            nn.Linear(places.shape[-1], width),
            nn.LayerNorm(width),
            nn.Linear(width, 1),
        )
        self.to(x.device)

    def forward(self, x: Float[Tensor, "batch ..."], t: Float[Tensor, "batch"], given: Given) -> Float[Tensor, "batch"]:
        h = self.norm(self.hidden(self._places(x, t, given).to(self.hidden.weight.dtype)))
        return self.output(nn.functional.silu(h)).flatten(1).mean(1)

    def _places(self, x: Tensor, t: Tensor, given: Given) -> Float[Tensor, "batch places channels"]:
        feature = self.trunk.feature(NAME, x, t, given)
        if feature.dim() > 3:
            return feature.flatten(2).transpose(1, 2)
        return feature.unsqueeze(1) if feature.dim() == 2 else feature
