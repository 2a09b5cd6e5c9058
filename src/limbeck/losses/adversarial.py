"""Adversarial losses: a discriminator's numbers in, one value per sample out. Large means real."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, "batch"]
Game = Literal["softplus", "hinge", "wasserstein"]


def fooled(fake: Logits, game: str = "softplus") -> Logits:
    """What the generator wants little of: softplus(-H) (non-saturating, Goodfellow et al. 2014), or -H (hinge, wasserstein)."""
    return F.softplus(-fake) if game == "softplus" else -fake


def told_fake(fake: Logits, game: str = "softplus") -> Logits:
    """What the discriminator wants little of on generated samples: softplus(H), relu(1 + H), or H."""
    return {"softplus": F.softplus, "hinge": lambda h: F.relu(1 + h), "wasserstein": lambda h: h}[game](fake)


def told_real(real: Logits, game: str = "softplus") -> Logits:
    """The same on real samples: softplus(-H), relu(1 - H), or -H."""
    return {"softplus": lambda h: F.softplus(-h), "hinge": lambda h: F.relu(1 - h), "wasserstein": lambda h: -h}[game](
        real
    )


def relativistic(better: Logits, worse: Logits) -> Logits:
    """softplus(-(H(better) - H(worse))): each pair is judged by its difference alone (Jolicoeur-Martineau 2018)."""
    return F.softplus(worse - better)
