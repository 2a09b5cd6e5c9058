"""Divergences of scores: for Gaussians their surrogates have the gradients that calculus gives."""

import numpy as np
import pytest
import torch

from limbeck.diffusion.implicit import score_identity, score_implicit

ALPHA, SIGMA, M, S = 0.6, 0.9, -0.3, 0.5
NODES, WEIGHTS = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(48))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def denoised(x_t, mean, std):
    """E[x0 | x_t] of N(mean, std^2)."""
    v = ALPHA**2 * std**2 + SIGMA**2
    return mean + ALPHA * std**2 / v * (x_t - ALPHA * mean)


def surrogate(measure):
    """The gradient in (a, b) of the mean of a surrogate for the samples a z + b, with the exact F, whose parameters rest."""
    a, b = torch.tensor([0.8, 0.4], dtype=torch.float64, requires_grad=True).unbind()
    leaf = a._base
    z, eps = (n.flatten()[:, None] for n in torch.meshgrid(NODES, NODES, indexing="ij"))
    x0 = a * z + b
    x_t = ALPHA * x0 + SIGMA * eps
    values = measure(x0, denoised(x_t, b.detach(), a.detach()), denoised(x_t, M, S))
    return torch.autograd.grad(((WEIGHTS[:, None] * WEIGHTS).flatten() * values).sum(), leaf)[0]


def divergence(distance, sampled_too=False):
    """The gradient of E d((F_ab - R)(x_t)); the samples held where they are, or not."""
    leaf = torch.tensor([0.8, 0.4], dtype=torch.float64, requires_grad=True)
    a, b = leaf
    spread = (ALPHA**2 * a**2 + SIGMA**2).sqrt()
    x_t = ALPHA * b + spread * NODES
    x_t = x_t if sampled_too else x_t.detach()
    return torch.autograd.grad((WEIGHTS * distance(denoised(x_t, b, a) - denoised(x_t, M, S))).sum(), leaf)[0]


@pytest.mark.parametrize(("share", "sampled_too"), [(1.0, False), (0.5, True)])
def test_the_identity_has_the_gradient_of_the_fisher_divergence(share, sampled_too):
    found = 2 * surrogate(lambda x0, fake, real: score_identity(x0, fake, real, share))
    torch.testing.assert_close(found, divergence(torch.square, sampled_too), rtol=1e-9, atol=1e-12)


def test_the_mean_of_the_identity_at_share_one_is_nothing():
    """With the exact F: F - x0 is uncorrelated with every function of x_t, so only its gradient teaches."""
    x0, x_t = (v.flatten()[:, None] for v in torch.meshgrid(NODES, NODES, indexing="ij"))
    x0 = 0.8 * x0 + 0.4
    x_t = ALPHA * x0 + SIGMA * x_t
    values = score_identity(x0, denoised(x_t, 0.4, 0.8), denoised(x_t, M, S), 1.0)
    assert values.abs().max() > 0.1
    assert ((WEIGHTS[:, None] * WEIGHTS).flatten() * values).sum().item() == pytest.approx(0, abs=1e-13)


@pytest.mark.parametrize("c", [None, 0.7])
def test_implicit_matching_has_the_gradient_of_its_divergence(c):
    level = SIGMA / ALPHA

    def distance(gap):
        y = gap / level
        return y.square() if c is None else (y.square() + c**2).sqrt() - c

    found = surrogate(lambda x0, fake, real: score_implicit(x0, fake, real, torch.full((len(x0),), level), c))
    torch.testing.assert_close(found, divergence(distance), rtol=1e-9, atol=1e-9)


def test_the_square_is_the_identity_at_one_and_the_distance_is_of_all_dimensions_together():
    g = torch.Generator().manual_seed(0)
    x0, fake, real = (torch.randn(5, 3, 2, generator=g, dtype=torch.float64) for _ in range(3))
    level = torch.rand(5, generator=g, dtype=torch.float64) + 0.5
    square = score_implicit(x0, fake, real, level)
    torch.testing.assert_close(square, 2 * score_identity(x0, fake, real) / level**2)
    y, r = ((v / level[:, None, None]).flatten(1) for v in (fake - real, fake - x0))
    expected = -(y * r).sum(1) / (y.square().sum(1) + 6 * 0.3**2).sqrt() / 6**0.5
    torch.testing.assert_close(score_implicit(x0, fake, real, level, 0.3), expected)
    assert score_implicit(x0, real, real, level, 0.3).abs().max() == 0
