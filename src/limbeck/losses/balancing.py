"""Load balancing of a router: keeps a gate from sending every sample to the same expert.

Both functions are of **batch scope**: they look at the whole batch together and return one number, not one per sample.
Cut a batch and the mean of the pieces' values is another number, so give them to `Loss.batch`, which never cuts.

Source: Li et al. 2025, "MST-Distill", the router's loss (modes KL and CV), and its released code.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from limbeck.losses.masking import widened

__all__ = ["balance_cv", "balance_kl"]

Gates = Float[Tensor, "batch experts"]


def balance_kl(
    gates: Gates, *, per_expert: bool = True, logits: bool = False, mask: Bool[Tensor, "batch"] | None = None
) -> Float[Tensor, ""]:
    """How far the mean gate g (over the batch) is from uniform: KL(uniform || g) = sum_e (1/W) (log(1/W) - log g_e).

    In nats, at least 0, and 0 only when the mean gate is uniform; a single sample may still go to one expert.

    Args:
        gates: probabilities, rows of sum 1; or, with `logits`, what they are the softmax of.
        per_expert: divide by the number of experts W once more, as the published code does (`batchmean` of a vector
            of W entries), so that published weights mean the same. False: the divergence itself.
        logits: `gates` are logits, and everything stays in log-space: finite, with a gradient, however small a
            probability is. A mean probability of 0 counts as the smallest normal number, without gradient.
        mask: samples that count; the others have exactly no gradient. Without any sample the value is 0.
    """
    gates = widened(gates)
    if mask is not None:
        gates = gates[mask]
    samples, experts = gates.shape
    if samples == 0:
        return gates.sum()
    if logits:
        log_mean = torch.logsumexp(torch.log_softmax(gates, -1), 0) - math.log(samples)
    else:
        log_mean = gates.mean(0).clamp(min=torch.finfo(gates.dtype).tiny).log()
    value = (-math.log(experts) - log_mean).mean()
    return value / experts if per_expert else value


def balance_cv(gates: Gates, *, mask: Bool[Tensor, "batch"] | None = None) -> Float[Tensor, ""]:
    """Coefficient of variation of the experts' importance: std(I) / mean(I), I_e = sum over the batch of gate e.

    The standard deviation is the unbiased one (divides by W - 1). Without units, from 0 (balanced) to sqrt(W) (all to
    one expert). One expert, or no sample that counts, gives 0.

    Source: Shazeer et al. 2017, "Outrageously large neural networks", equation 7 is its square.

    Args:
        gates: probabilities, or any weights of at least 0.
        mask: samples that count.
    """
    gates = widened(gates)
    importance = (gates if mask is None else gates[mask]).sum(0)
    if importance.numel() == 1:
        return importance.sum() * 0.0
    return importance.std(correction=1) / importance.mean().clamp(min=torch.finfo(gates.dtype).tiny)
