"""Maps and tokens as columns: one row of positions per channel, so that losses over positions or channels read alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.masking import aligned, keep, widened

Columns = Float[Tensor, "batch channels positions"]

_POOLS: dict[int, Callable[..., Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}


def channels_of(x: Tensor, dim: int | None) -> int:
    """Which dimension holds the channels: `dim`, or by the shape 1 for maps and volumes, the last for tokens and vectors."""
    return (1 if x.dim() > 3 else x.dim() - 1) if dim is None else dim % x.dim()


def columns(
    x: Float[Tensor, "batch ..."], *, dim: int | None = None, mask: Bool[Tensor, "batch ..."] | None = None
) -> Columns:
    """`x` in fp32 or better as [batch, channels, positions], with zeros (and no gradient) where `mask` is False."""
    at = channels_of(x, dim)
    x = keep(widened(x), mask, at).movedim(at, 1)
    return x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)


def spread(
    mask: Bool[Tensor, "batch ..."], shape: torch.Size, dim: int | None = None
) -> Bool[Tensor, "batch positions"]:
    """A mask of samples or of positions, written out for the positions that `columns` gives of that shape."""
    at = (1 if len(shape) > 3 else len(shape) - 1) if dim is None else dim % len(shape)
    places = torch.Size([*shape[:at], *shape[at + 1 :]])
    return aligned(mask.bool(), places, "mask").expand(places).reshape(places[0], -1)


def facing(
    student: Float[Tensor, "batch ..."],
    teacher: Float[Tensor, "batch ..."],
    what: str,
    *,
    dim: int | None = None,
    mask: Bool[Tensor, "batch ..."] | None = None,
) -> tuple[Columns, Columns, Bool[Tensor, "batch positions"] | None]:
    """Both as columns over the same positions, and the mask of those; the numbers of channels may differ.

    Where one has more positions along a dimension of time or space, it is averaged over adaptive windows down to the
    other's (a mask would then not say which windows count, so there must be none).

    Raises:
        RecipeError: a vector, which has no positions; different kinds of signals; a mask with different sizes.
    """
    s, t = (x.movedim(channels_of(x, dim), 1) for x in (student, teacher))
    if s.dim() != t.dim() or s.dim() < 3 or len(s) != len(t):
        raise RecipeError(
            f"{what} compares positions: the student's tensor has shape {list(student.shape)}, the teacher's "
            f"{list(teacher.shape)}; needed are two maps [batch, channels, height, width] or two sequences [batch, tokens, width]."
        )
    here, there = s.shape[2:], t.shape[2:]
    if here != there:
        if mask is not None:
            raise RecipeError(
                f"{what} with a mask needs the same positions on both sides; the student has {list(here)}, the "
                f"teacher {list(there)}. Give the term a bridge, or no mask."
            )
        least = tuple(min(pair) for pair in zip(here, there))
        s, t = (x if x.shape[2:] == least else _POOLS[len(least)](widened(x), least) for x in (s, t))
    counts = spread(mask, student.shape, dim) if mask is not None else None
    s, t = columns(s, dim=1), columns(t, dim=1)
    if s.dtype != t.dtype:
        s, t = s.double(), t.double()
    if counts is not None:
        s, t = keep(s, counts, 1), keep(t, counts, 1)
    return s, t, counts


def products(a: Float[Tensor, "*batch n d"], b: Float[Tensor, "*batch m d"]) -> Float[Tensor, "*batch n m"]:
    """All inner products of the rows of `a` with those of `b`, in their own precision: autocast would take bf16."""
    with torch.autocast(a.device.type, enabled=False):
        return a @ b.mT
