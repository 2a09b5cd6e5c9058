"""How alike two orders are."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from limbeck.losses.masking import paired

__all__: list[str] = []  # a measure, not a loss: it has no gradient


def kendall_tau(student: Float[Tensor, "..."], teacher: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """Kendall's rank correlation tau-b of the two orders along `dim`, in [-1, 1]; 0 where one side has only ties.

    (concordant - discordant pairs) / sqrt(pairs untied in one * pairs untied in the other). Compares every two entries:
    memory grows with the square of their number. Detached: the sign of a difference has no gradient.

    Source: Kendall 1945, "The treatment of ties in ranking problems".

    Raises:
        RecipeError: different shapes.
    """
    signs = [
        (x.unsqueeze(-1) - x.unsqueeze(-2)).sign()
        for x in (t.detach().movedim(dim, -1) for t in paired(student, teacher))
    ]
    together = (signs[0] * signs[1]).sum((-2, -1))
    untied = [s.abs().sum((-2, -1)) for s in signs]
    return together / (untied[0] * untied[1]).sqrt().clamp(min=1)
