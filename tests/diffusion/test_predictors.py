"""Heads: what each is, every one out of every other, where none is defined, and the closed forms of Gaussians."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.diffusion.noise import VE, VP, Flow, wide
from limbeck.diffusion.predictors import HEADS, Prediction, convert, target_of
from limbeck.errors import RecipeError

NOISES = {"vp": VP(), "ve": VE(), "flow": Flow()}


def a_sample(noise, share=0.5, batch=3):
    x0, eps = torch.randn(2, batch, 2, 4, dtype=torch.float64)
    t = noise.at(torch.full((batch,), share, dtype=torch.float64))
    alpha, sigma = wide(noise.alpha(t), x0), wide(noise.sigma(t), x0)
    return x0, eps, alpha, sigma, alpha * x0 + sigma * eps


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(NOISES)), st.floats(0.05, 0.95))
def test_every_head_out_of_every_other(name, share):
    x0, eps, alpha, sigma, x_t = a_sample(NOISES[name], share)
    for source, to in itertools.product(HEADS, HEADS):
        found = convert(target_of(source, x0, eps, alpha, sigma), x_t, alpha, sigma, source, to)
        expected = target_of(to, x0, eps, alpha, sigma)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_heads_by_their_definitions():
    x0, eps, alpha, sigma, x_t = a_sample(NOISES["flow"], 0.3)
    p = Prediction(x0, "x0", x_t, alpha, sigma)
    torch.testing.assert_close(p.epsilon, (x_t - alpha * x0) / sigma)
    torch.testing.assert_close(p.score, (alpha * x0 - x_t) / sigma**2)
    torch.testing.assert_close(p.velocity, (x_t - x0) / sigma)  # (x_t - D) / t
    torch.testing.assert_close(p.v, alpha * eps - sigma * x0)
    x0, eps, alpha, sigma, x_t = a_sample(NOISES["vp"], 0.4)
    v = torch.randn_like(x0)
    torch.testing.assert_close(Prediction(v, "v", x_t, alpha, sigma).x0, alpha * x_t - sigma * v)


def test_the_edm_head_is_that_of_the_paper():
    x0, eps, _, sigma, x_t = a_sample(NOISES["ve"], 0.5)
    std, raw = 0.7, torch.randn_like(x0)
    skip, out = std**2 / (sigma**2 + std**2), sigma * std / (sigma**2 + std**2).sqrt()
    found = Prediction(raw, "edm", x_t, torch.ones_like(sigma), sigma, std).x0
    torch.testing.assert_close(found, skip * x_t + out * raw)
    target = target_of("edm", x0, eps, torch.ones_like(sigma), sigma, std)
    torch.testing.assert_close(target, (x0 - skip * x_t) / out)


def test_the_target_of_the_edm_head_has_unit_variance():
    """Which is what it is made for: for data of standard deviation d the target's variance is 1 at every level."""
    x0, eps = 0.5 * torch.randn(200_000, dtype=torch.float64), torch.randn(200_000, dtype=torch.float64)
    for sigma in (0.01, 0.5, 40.0):
        target = target_of("edm", x0, eps, torch.tensor(1.0), torch.tensor(sigma, dtype=torch.float64), 0.5)
        assert float(target.var()) == pytest.approx(1, rel=0.02)


def test_the_same_head_is_given_back_to_the_bit_even_where_others_are_undefined():
    x, value = torch.randn(2, 3), torch.randn(2, 3)
    one, zero = torch.ones(2, 1), torch.zeros(2, 1)
    assert Prediction(value, "epsilon", x, zero, one).epsilon is value
    assert not torch.isfinite(
        Prediction(value, "epsilon", x, zero, one).x0
    ).any()  # at alpha = 0 noise says nothing of data
    torch.testing.assert_close(Prediction(value, "v", x, zero, one).x0, -value)  # and v says all
    torch.testing.assert_close(Prediction(value, "velocity", x, zero, one).x0, x - value)
    torch.testing.assert_close(Prediction(value, "velocity", x, one, zero).x0, x)  # without noise x_t is the data


def test_all_heads_of_a_gaussian_are_its_closed_forms():
    """Data N(m, s^2): E[x0 | x_t] = m + alpha s^2 (x_t - alpha m) / v, score = -(x_t - alpha m) / v, v = alpha^2 s^2 + sigma^2."""
    m, s = 0.7, 0.4
    for noise in NOISES.values():
        _, _, alpha, sigma, x_t = a_sample(noise, 0.6)
        var = alpha**2 * s**2 + sigma**2
        p = Prediction(m + alpha * s**2 / var * (x_t - alpha * m), "x0", x_t, alpha, sigma)
        torch.testing.assert_close(p.score, -(x_t - alpha * m) / var)
        torch.testing.assert_close(p.epsilon, sigma * (x_t - alpha * m) / var)


def test_gradients_reach_the_noisy_sample_through_every_head():
    x0, _, alpha, sigma, x_t = a_sample(NOISES["vp"], 0.5)
    x_t = x_t.clone().requires_grad_()
    Prediction(x0, "x0", x_t, alpha, sigma).score.sum().backward()
    torch.testing.assert_close(x_t.grad, (-1 / sigma**2).expand_as(x_t))
    assert not Prediction(x0, "x0", x_t, alpha, sigma).detach().score.requires_grad


def test_an_unknown_head_is_refused():
    with pytest.raises(RecipeError, match="epsilon"):
        convert(torch.zeros(1), torch.zeros(1), torch.ones(1), torch.ones(1), "epsilom", "x0")
