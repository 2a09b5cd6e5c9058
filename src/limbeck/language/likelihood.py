"""What a language model says of tokens that stand there: one log-probability each, whatever form its logits have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.losses import linear, sketched
from limbeck.losses.masking import keep, widened
from limbeck.signals import Projection
from limbeck.sketches import Sketch


def log_probs_of(
    logits: Float[Tensor, "batch tokens classes"] | Projection | Sketch,
    tokens: Int64[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    classes: int | None = None,
) -> Float[Tensor, "batch tokens"]:
    """log softmax(z_t) at `tokens`, in nats, fp32 at least; exactly 0, without a gradient, where `mask` is False.

    A projection is never multiplied out. Of a sketch: what it knows of the token; of one it does not know, an even
    share of the rest. `classes`: only the first so many are tokens, the rest is padding of the head.

    Raises:
        RecipeError: the classes of a sketch were drawn, and how likely a single one is cannot be told.
    """
    tokens = tokens.where(mask, 0)
    if isinstance(logits, Projection):
        return -linear.cross_entropy(logits, tokens, mask=mask, classes=classes)
    if isinstance(logits, Sketch):
        if logits.sampled:
            raise RecipeError(
                "these stored logits are draws, which do not tell how likely a single token is. Store the most probable classes "
                "instead (cache.top_k or cache.token_bytes), or ask the teacher itself."
            )
        same = (logits.ids == tokens.unsqueeze(-1)) & logits.known
        known = torch.where(same, logits.log_probs, 0).sum(-1)
        return torch.where(mask, torch.where(same.any(-1), known, logits.log_share), 0)
    log_p = keep(widened(logits[..., :classes]), mask, -1).log_softmax(-1)
    return torch.where(mask, log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), 0)


def next_tokens(batch: dict[str, Tensor]) -> Int64[Tensor, "batch tokens"]:
    """The token after every position (0 after the last), whether or not it is a target."""
    return torch.nn.functional.pad(batch["input_ids"], (0, 1))[:, 1:]


def values_of(
    loss: Callable[..., Tensor], student: Any, teacher: Any, mask: Bool[Tensor, "batch tokens"], **options: Any
) -> Float[Tensor, "batch tokens"]:
    """The values of a divergence per token, by the form of it that goes with the form of both logits.

    `classes` among the options: only the first so many are tokens.
    """
    own = sketched.matching(loss) if isinstance(teacher, Sketch) else None
    if own is None and isinstance(student, Projection) and isinstance(teacher, Projection):
        own = linear.fused(loss)
    if own is not None:
        return own(student, teacher, mask=mask, **options)
    classes = options.pop("classes", None)
    ours, theirs = (x.materialise() if isinstance(x, Projection) else x for x in (student, teacher))
    return loss(ours[..., :classes], theirs[..., :classes], mask=mask, **options)


def rows_of(logits: Any, rows: Any) -> Any:
    """Some rows of logits in any form."""
    if isinstance(logits, Projection):
        return replace(logits, hidden=logits.hidden[rows])
    return logits[rows]
