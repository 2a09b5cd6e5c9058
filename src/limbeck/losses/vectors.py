"""Vectors of length one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__: list[str] = []  # no loss


def unit(x: Float[Tensor, "*any width"], dim: int = -1) -> Float[Tensor, "*any width"]:
    """`x` with length 1 along `dim`, also where its squares would vanish; zero vectors stay zero, with a gradient of zero."""
    largest = x.detach().abs().amax(dim, keepdim=True)
    x = x / torch.where(largest > 0, largest, torch.inf)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.where(norm > 0, norm, 1.0)
