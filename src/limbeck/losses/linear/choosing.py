"""The most probable class of every token, the logits never held as a whole."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.signals import Projection
from limbeck.sketches import Sketch

__all__: list[str] = []  # no loss

_ROOM = 2**24
"""Logits that are held at a time."""


@torch.no_grad()
def most_probable(
    logits: Projection | Sketch | Float[Tensor, "... classes"], mask: Bool[Tensor, "..."]
) -> Int64[Tensor, "..."]:
    """argmax of the logits of the tokens that `mask` counts, -1 for the others; ties go to the first class.

    Scale (if it is above zero) and soft cap of a projection keep the order and are left out. Of a sketch: the most
    probable one of those that it knows.
    """
    found = torch.full(mask.shape, -1, device=mask.device)
    if isinstance(logits, Sketch):
        best = logits.ids.gather(-1, logits.log_probs.argmax(-1, keepdim=True)).squeeze(-1)
        return best.long().where(mask, found)
    if isinstance(logits, Tensor):
        found[mask] = logits[mask].argmax(-1)
        return found
    hidden = logits.hidden[mask]
    size = max(1, _ROOM // len(logits.weight))
    weight = logits.weight.to(hidden.dtype)
    bias = None if logits.bias is None else logits.bias.to(hidden.dtype)
    parts = [torch.nn.functional.linear(part, weight, bias).argmax(-1) for part in hidden.split(size)]
    if len(hidden):
        found[mask] = torch.cat(parts)
    return found
