"""What transforms are, and what they share."""

from __future__ import annotations

from typing import Annotated, Any
from zlib import crc32

import torch
from jaxtyping import Bool, Int64
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from limbeck.choices import spelled
from limbeck.errors import RecipeError
from limbeck.randomness import fold

Inputs = dict[str, Any]
Seeds = Int64[Tensor, "batch"]
Keys = Annotated[tuple[str, ...], BeforeValidator(lambda keys: (keys,) if isinstance(keys, str) else keys)]
Rate = Annotated[float, Field(ge=0, le=1)]

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)


class Transform:
    """A change of a view's columns. Your own: derive a pydantic dataclass and name it `module:Class`."""

    always: bool = False

    def __call__(self, inputs: Inputs, seeds: Seeds | None) -> Inputs:
        """The columns as the model shall see them; `inputs` itself stays as it is.

        `seeds`: one per sample in training; None in evaluation, unless `always`.
        """
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """The columns that its options name; the view checks that it has them."""
        return tuple(getattr(self, "keys", None) or ())

    def adds(self) -> tuple[str, ...]:
        """The columns that it makes; the view does not look for them in the batch."""
        return ()

    def spec(self) -> dict[str, Any]:
        """How a recipe spells it, every default written out."""
        return spelled(self, KNOWN)


@dataclass(frozen=True, config=CONFIG, kw_only=True)
class RandomTransform(Transform):
    """A transform that draws. `salt`: which of the independent draws; `always`: in evaluation too."""

    salt: int = 0
    always: bool = False

    def seeds(self, seeds: Seeds, key: str = "") -> Seeds:
        """Seeds of this transform's own, for one column."""
        return fold(fold(seeds, self.salt), crc32(f"{type(self).__name__}/{key}".encode()))


KNOWN: dict[str, type[Transform]] = {}  # by their names in recipes; filled where all are at hand, in the package


def tensor(x: Any, key: str, floating: bool = False) -> Tensor:
    """`x` itself if it is a tensor (of floating-point numbers).

    Raises:
        RecipeError: the column `key` holds something else.
    """
    if not isinstance(x, Tensor) or (floating and not x.is_floating_point()):
        kind = f"{x.dtype} tensor".removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
        needed = "a tensor of floating-point numbers" if floating else "a tensor"
        raise RecipeError(f"column '{key}' is a {kind}; this transform needs {needed}.")
    return x


def floating(inputs: Inputs) -> tuple[str, ...]:
    """The columns that are tensors of floating-point numbers."""
    return tuple(key for key, x in inputs.items() if isinstance(x, Tensor) and x.is_floating_point())


def zeroed(x: Tensor, where: Bool[Tensor, "batch ..."]) -> Tensor:
    """`x` with zeros where told; a one-dimensional `where` speaks of whole samples."""
    where = where.to(x.device)
    where = where.view(-1, *[1] * (x.dim() - 1)) if where.dim() == 1 else where
    return torch.where(where, torch.zeros((), dtype=x.dtype, device=x.device), x)
