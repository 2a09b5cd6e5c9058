"""Surgeries that change how a network is asked: each lies around what is there, so that several go together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from limbeck.diffusion.network import DiffusionNetwork


def lay_around(model: DiffusionNetwork, asked: Callable[..., Tensor]) -> None:
    """From now on `model.predict(x, t, **given)` is `asked(model, inner, x, t, **given)`, `inner` what it was before.

    Both are arguments of the new one, so that a deep copy of the model asks itself and not the first.
    """
    model.predict = partial(asked, model, model.predict)  # type: ignore[method-assign]
