"""The next token: a distribution out of logits, and a draw from it that depends on the row's own seed only."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from limbeck.losses.masking import widened
from limbeck.randomness import uniform

_BLOCK = 256
"""Mass is cumulated over blocks and then within one: a large vocabulary is summed up in fp64, but not held in it."""


def distribution(
    logits: Float[Tensor, "batch vocabulary"], *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Tensor, "batch vocabulary"]:
    """Log-probabilities, fp32 at least, of what is drawn from: softmax(logits / temperature), restricted and normalised again.

    Args:
        temperature: 0 puts all mass on the most probable token (the first of several).
        top_k: only the k most probable tokens (and those that tie with the last of them); 0: all.
        top_p: only the fewest most probable tokens that together have at least this mass, in (0, 1]; 1: all.
    """
    logits = widened(logits)
    if temperature == 0:
        return torch.full_like(logits, -math.inf).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    log_p = torch.log_softmax(logits / temperature, -1)
    if 0 < top_k < log_p.shape[-1]:
        log_p = log_p.masked_fill(log_p < log_p.topk(top_k, -1).values[..., -1:], -math.inf).log_softmax(-1)
    if top_p < 1:
        ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
        p = ordered.exp()
        beyond = p.cumsum(-1) - p >= top_p  # what stands before it is enough already
        beyond[..., 0] = False
        log_p = log_p.masked_fill(beyond.scatter(-1, order, beyond), -math.inf).log_softmax(-1)
    return log_p


def mixed(
    ours: Float[Tensor, "batch vocabulary"], theirs: Float[Tensor, "batch vocabulary"], share: float
) -> Float[Tensor, "batch vocabulary"]:
    """log((1 - share) exp(ours) + share exp(theirs)), 0 <= share <= 1."""
    if share in (0, 1):
        return theirs if share else ours
    return torch.logaddexp(ours + math.log1p(-share), theirs.to(ours.dtype) + math.log(share))


def draw(log_p: Float[Tensor, "batch vocabulary"], seeds: Int64[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
    """One token per row: the first whose cumulated mass exceeds a number of 48 random bits that belongs to the row's seed.

    No generator is read or changed, and a row's draw does not depend on the other rows. Rounding of the logits moves it
    only where that number lies within as much of an edge between two tokens. Tokens without mass are never drawn.
    """
    device = log_p.device
    if device.type == "mps":  # has no float64
        log_p, seeds = log_p.cpu(), seeds.cpu()
    high, low = uniform(seeds, 2).double().unbind(-1)
    p = torch.nn.functional.pad(log_p.exp(), (0, -log_p.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    blocks = p.sum(-1, dtype=torch.float64).cumsum(-1)
    point = (high + low * 2.0**-24) * blocks[:, -1]
    block = _first_above(blocks, point)
    within = p[torch.arange(len(p), device=p.device), block].double().cumsum(-1)
    point = point - torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)[:, None]).squeeze(-1), 0)
    # sums of another order may differ in the last bit: below the block's end there is always a token with mass
    point = torch.minimum(point, torch.nextafter(within[:, -1], torch.zeros_like(point)))
    return (block * _BLOCK + _first_above(within, point)).to(device)


def _first_above(mass: Float[Tensor, "batch n"], point: Float[Tensor, "batch"]) -> Int64[Tensor, "batch"]:
    return torch.searchsorted(mass, point[:, None], right=True).squeeze(-1)
