"""How good generated samples are: distances between two sets of samples, in the space of a classifier's features or as they are.

Everything takes features or samples [samples, dims] (pictures are flattened) and is computed in float64. The first argument is
what was generated, the second what is real.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.errors import RecipeError
from limbeck.randomness import normal

Features = Float[Tensor, "samples dims"]


def flat(x: Float[Tensor, "samples ..."]) -> Features:
    """Samples as rows of float64 numbers."""
    return x.detach().flatten(1).double()


def frechet(generated: Features, real: Features) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): the squared 2-Wasserstein distance of the Gaussians with these moments.

    Covariances are those of the samples (n - 1). Of Inception features it is the FID (Heusel et al. 2017, equation 6).
    Depends on how many samples there are: compare figures of equal counts.
    """
    (a, b), dims = (flat(generated), flat(real)), generated.flatten(1).shape[1]
    means, (one, two) = a.mean(0) - b.mean(0), (_covariance(a), _covariance(b))
    values, vectors = torch.linalg.eigh(one)  # (S1^1/2 S2 S1^1/2)^1/2 has the trace that is wanted, and is symmetric
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ two @ root).clamp(min=0).sqrt().sum()
    found = means.square().sum() + one.diagonal().sum() + two.diagonal().sum() - 2 * cross
    return max(float(found), 0.0) if dims else math.nan


def kernel_distance(generated: Features, real: Features) -> float:
    """The unbiased squared MMD with the kernel (x . y / dims + 1)^3; may be below 0. Of Inception features it is the KID.

    Source: Binkowski et al. 2018, "Demystifying MMD GANs", equation 3 and section 3.1.
    """
    a, b = flat(generated), flat(real)
    return _unbiased(*((x @ y.T / x.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b))))


def mmd(generated: Features, real: Features, bandwidths: tuple[float, ...] = (0.5, 1.0, 2.0)) -> float:
    """The unbiased squared MMD, a mean over Gaussian kernels exp(-d^2 / (2 (f m)^2)), m the median distance in the real samples.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", equation 3; the median heuristic is in section 8.
    """
    a, b = flat(generated), flat(real)
    squares = [_squares(x, y) for x, y in ((a, a), (b, b), (a, b))]
    within = squares[1][~torch.eye(len(b), dtype=torch.bool, device=b.device)]
    middle = within.median().clamp(min=1e-30) if len(within) else torch.ones((), dtype=torch.float64)
    kernels = [torch.stack([torch.exp(-d / (2 * f**2 * middle)) for f in bandwidths]).mean(0) for d in squares]
    return _unbiased(*kernels)


def sliced_wasserstein(generated: Features, real: Features, projections: int = 128, seed: int = 0) -> float:
    """The root of the mean over random directions of the squared 2-Wasserstein distance of the projected samples.

    Counts may differ: quantile functions are compared. In one dimension the exact distance. Directions follow from `seed`.
    Source: Bonneel et al. 2015, "Sliced and Radon Wasserstein Barycenters of Measures", section 3.
    """
    a, b = flat(generated), flat(real)
    directions = normal(torch.arange(projections) + (seed << 20), a.shape[1]).double().to(a.device)
    directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-30)
    one, two = ((x @ directions.T).sort(0).values for x in (a, b))
    return math.sqrt(float(_between_quantiles(one, two).mean()))


def _between_quantiles(one: Float[Tensor, "n k"], two: Float[Tensor, "m k"]) -> Float[Tensor, "k"]:
    """The integral over [0, 1] of the squared difference of two step functions of sorted values."""
    n, m = len(one), len(two)
    if n == m:
        return (one - two).square().mean(0)
    edges = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(one.device)
    lengths = torch.diff(edges, prepend=edges.new_zeros(1)).double() / (n * m)
    last = edges - 1
    return ((one[last // m] - two[last // n]).square() * lengths[:, None]).sum(0)


def neighbourhoods(generated: Features, real: Features, k: int = 3) -> dict[str, float]:
    """precision, recall, density and coverage: of balls around each sample that reach to its k-th neighbour in its own set.

    precision: share of generated samples in some real ball; recall: the other way round; density: mean over generated samples of
    (real balls that hold it) / k; coverage: share of real balls that hold a generated sample.
    Sources: Kynkaanniemi et al. 2019, equation 2; Naeem et al. 2020, equations 3 and 4.

    Raises:
        RecipeError: fewer than k + 1 samples.
    """
    a, b = flat(generated), flat(real)
    if min(len(a), len(b)) <= k:
        raise RecipeError(
            f"precision and recall look at {k} neighbours, and there are {min(len(a), len(b))} samples; {k + 1} are needed."
        )
    reach = [_squares(x, x).kthvalue(k + 1, dim=1).values for x in (a, b)]
    apart = _squares(a, b)
    in_real, in_generated = apart <= reach[1], reach[0] >= apart.T
    return {
        "precision": float(in_real.any(1).double().mean()),
        "recall": float(in_generated.any(1).double().mean()),
        "density": float(in_real.double().sum(1).mean() / k),
        "coverage": float(in_real.any(0).double().mean()),
    }


def diversity(generated: Features, label: Int[Tensor, "samples"] | None = None) -> float:
    """The mean distance between two samples of the same class (of all, without labels); nan where no class has two."""
    a = flat(generated)
    groups = [a] if label is None else [a[label == c] for c in label.unique()]
    sums = [(float(_squares(g, g).sqrt().sum()), len(g) * (len(g) - 1)) for g in groups]
    pairs = sum(count for _, count in sums)
    return sum(total for total, _ in sums) / pairs if pairs else math.nan


def conditional_accuracy(logits: Float[Tensor, "samples classes"], label: Int[Tensor, "samples"]) -> float:
    """Share of generated samples that a classifier takes for what they were to be."""
    return float((logits.argmax(1) == label).double().mean())


def modes_covered(generated: Features, means: Features, least: float = 0.01) -> int:
    """How many of the `means` are nearest to at least a share `least` of the samples."""
    nearest = _squares(flat(generated), flat(means)).argmin(1)
    return int((nearest.bincount(minlength=len(means)) >= least * len(generated)).sum())


def figures(
    generated: Float[Tensor, "samples ..."],
    real: Float[Tensor, "samples ..."],
    label: Int[Tensor, "samples"] | None = None,
    classifier: Callable[[Tensor], Mapping[str, Tensor]] | None = None,
) -> dict[str, float]:
    """All of them: on the samples themselves `mmd`, `sliced_wasserstein`, `diversity`; with a classifier (which gives `embedding`
    and `logits`) on its features `frechet`, `kernel_distance`, `precision` and the others, and the conditional accuracy."""
    found = {
        "mmd": mmd(generated, real),
        "sliced_wasserstein": sliced_wasserstein(generated, real),
        "diversity": diversity(generated, label),
    }
    if classifier is None:
        return found | (neighbourhoods(generated, real) if min(len(generated), len(real)) > 3 else {})
    ours, theirs = classifier(generated), classifier(real)
    features = ours["embedding"], theirs["embedding"]
    found |= {"frechet": frechet(*features), "kernel_distance": kernel_distance(*features)}
    found |= neighbourhoods(*features) | {"diversity": diversity(features[0], label)}
    if label is not None and "logits" in ours:
        found["conditional_accuracy"] = conditional_accuracy(ours["logits"], label)
    return found


class Classifier:
    """A named classifier as a judge: its penultimate features (`embedding`) and its logits, in batches, in eval mode.

    Args:
        model: a module or anything a student may be (a run folder, `module:attribute`).
        layer: where the features are; None: what its source calls `embedding`, else the input of its last linear layer.
    """

    def __init__(self, model: nn.Module | str, layer: str | None = None, batch_size: int = 256, **keys: Any) -> None:
        from limbeck.actors import Actor
        from limbeck.models.adapters.columns import last_linear

        self.actor = Actor(model, **{"view": "x"} | keys)
        self.batch_size = batch_size
        if "embedding" not in self.actor.paths:
            path = layer or last_linear(self.actor.model)
            if path is None:
                raise RecipeError(
                    f"the classifier {type(self.actor.model).__name__} has no linear layer to read features from: name the place (layer=path:input)."
                )
            self.actor.tap("embedding", layer or f"{path}:input")
        self.actor.model.eval()

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "samples ..."]) -> dict[str, Tensor]:
        kept: dict[str, list[Tensor]] = {"embedding": [], "logits": []}
        for piece in x.split(self.batch_size):
            signals = self.actor({"x": piece, "id": torch.arange(len(piece))})
            for name, values in kept.items():
                values.append(signals[name].float().cpu())
        return {name: torch.cat(values) for name, values in kept.items()}


def _covariance(x: Features) -> Float[Tensor, "dims dims"]:
    centred = x - x.mean(0)
    return centred.T @ centred / max(len(x) - 1, 1)


def _squares(a: Features, b: Features) -> Float[Tensor, "n m"]:
    """Squared distances; differences are taken before they are squared, so that equal rows are exactly 0 apart."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def _unbiased(aa: Tensor, bb: Tensor, ab: Tensor) -> float:
    n, m = len(aa), len(bb)
    if min(n, m) < 2:
        return math.nan
    within = (aa.sum() - aa.diagonal().sum()) / (n * (n - 1)) + (bb.sum() - bb.diagonal().sum()) / (m * (m - 1))
    return float(within - 2 * ab.mean())
