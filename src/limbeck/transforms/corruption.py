"""Views of worse inputs: noise and masks."""

from __future__ import annotations

import math
from typing import Annotated

from jaxtyping import Bool
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.randomness import normal, uniform
from limbeck.transforms.base import CONFIG, Inputs, Keys, RandomTransform, Rate, Seeds, floating, tensor, zeroed


@dataclass(frozen=True, config=CONFIG)
class Noise(RandomTransform):
    """Adds independent Gaussian noise of standard deviation `std`, in the units of the column.

    `keys`: the columns; omitted: all columns of floating-point numbers. With `always` the noise belongs to the input
    (a bad sensor): evaluation sees it too, each sample its own and always the same.
    """

    std: Annotated[float, Field(ge=0)]
    keys: Keys | None = None

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        if seeds is None:
            return dict(inputs)
        changed = {}
        for key in self.keys or floating(inputs):
            x = tensor(inputs[key], key, floating=True)
            drawn = normal(self.seeds(seeds, key).to(x.device), *x.shape[1:])
            changed[key] = x + (self.std * drawn).to(x.dtype)
        return inputs | changed


@dataclass(frozen=True, config=CONFIG)
class RandomMask(RandomTransform):
    """Sets a fixed share of the positions of every sample to zero: pixels, patches, time steps or tokens.

    Args:
        fraction: round(fraction * number of positions) positions are zeroed, each set of them equally likely.
        dims: which dimensions are positions, counted from the end; all others share the mask. (-2, -1): pixels of
            [channels, height, width]; (-1,): time steps of [1, mels, frames]; (-2,): tokens of [tokens, width].
        patch: positions come in blocks of this size, one number or one per dimension; blocks at the end may be cut.
        keys: the columns; omitted: all columns of floating-point numbers.
    """

    fraction: Rate
    dims: Annotated[tuple[Annotated[int, Field(lt=0)], ...], Field(min_length=1)] = (-2, -1)
    patch: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], ...] = 1
    keys: Keys | None = None

    @model_validator(mode="after")
    def _fits(self) -> RandomMask:
        if isinstance(self.patch, tuple) and len(self.patch) != len(self.dims):
            raise ValueError(
                f"patch has {len(self.patch)} sizes for {len(self.dims)} dims; needed is one number, or one per dim."
            )
        if len(set(self.dims)) != len(self.dims):
            raise ValueError(f"dims {list(self.dims)} names a dimension twice.")
        return self

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        if seeds is None:
            return dict(inputs)
        changed = {}
        for key in self.keys or floating(inputs):
            x = tensor(inputs[key], key)
            if -min(self.dims) >= x.dim():
                raise RecipeError(
                    f"random-mask: column '{key}' has shape {list(x.shape[1:])} without dimension {min(self.dims)}."
                )
            hidden = self._hidden(self.seeds(seeds, key).to(x.device), x)
            changed[key] = zeroed(x, hidden)
        return inputs | changed

    def _hidden(self, seeds: Seeds, x: Tensor) -> Bool[Tensor, "batch ..."]:
        patches = self.patch if isinstance(self.patch, tuple) else (self.patch,) * len(self.dims)
        grid = [1] * (x.dim() - 1)
        for dim, patch in zip(self.dims, patches):
            grid[dim] = -(-x.shape[dim] // patch)
        positions = math.prod(grid)
        ranks = uniform(seeds, positions).argsort(dim=1, stable=True).argsort(dim=1)
        hidden = (ranks < round(self.fraction * positions)).view(-1, *grid)
        for dim, patch in zip(self.dims, patches):
            hidden = hidden.repeat_interleave(patch, dim).narrow(dim, 0, x.shape[dim])
        return hidden
