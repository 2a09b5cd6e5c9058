"""Score distillation's pieces: injected gradients, the normaliser, weights of denoising errors, pseudo-Huber."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.diffusion.noise import VE, VP, Flow, wide
from limbeck.diffusion.predictors import target_of
from limbeck.losses import find
from limbeck.losses.scores import apart, distribution_matching, inject, normaliser, per_sample, pseudo_huber, weight_of


@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_an_injected_gradient_arrives_over_the_number_of_elements(batch, dims, picture):
    shape = (batch, dims, 2, 3) if picture else (batch, dims)
    x, g = torch.randn(2, *shape, dtype=torch.float64)
    x.requires_grad_()
    inject(x, g).mean().backward()
    torch.testing.assert_close(x.grad, g / x.numel(), rtol=1e-12, atol=1e-14)


def test_no_gradient_goes_through_what_is_injected():
    x = torch.randn(3, 2, requires_grad=True)
    g = x.square()
    inject(x, g).sum().backward()
    torch.testing.assert_close(x.grad, x.detach().square() / 2)


def test_distribution_matching_is_its_formula_and_free_of_scale():
    x0, fake, real = torch.randn(3, 4, 2, 3, 3, dtype=torch.float64)
    nu = (x0 - real).abs().mean((1, 2, 3), keepdim=True)
    found = distribution_matching(x0, fake, real)
    torch.testing.assert_close(found, (fake - real) / nu)
    torch.testing.assert_close(distribution_matching(7 * x0, 7 * fake, 7 * real), found)
    assert not distribution_matching(x0, fake, real.requires_grad_()).requires_grad


def test_where_the_scores_agree_there_is_no_gradient_even_on_the_spot():
    x0 = torch.randn(2, 3)
    assert (distribution_matching(x0, x0, x0) == 0).all()
    found = distribution_matching(x0, x0 + 1e30, x0)
    assert torch.isfinite(found).all()
    nan = torch.full_like(x0, torch.nan)
    assert distribution_matching(x0, nan, x0 + 1).isnan().all()  # not silently zero


def test_the_normaliser_is_computed_in_single_precision_at_least():
    x0, real = torch.full((1, 4), 300.0, dtype=torch.bfloat16), torch.zeros(1, 4, dtype=torch.bfloat16)
    assert normaliser(x0, real).dtype == torch.float32
    assert normaliser(real, real).item() == pytest.approx(1e-6)


@pytest.mark.parametrize(
    ("head", "noise"), [("epsilon", VP()), ("epsilon", VE()), ("velocity", Flow()), ("v", VP()), ("x0", Flow())]
)
def test_weights_are_the_plain_errors_of_their_heads(head, noise):
    x0, eps, guess = torch.randn(3, 5, 2, dtype=torch.float64)
    t = noise.at(torch.linspace(0.1, 0.9, 5, dtype=torch.float64))
    alpha, sigma = noise.alpha(t), noise.sigma(t)
    a, s = wide(alpha, x0), wide(sigma, x0)
    noisy = a * x0 + s * eps
    said = target_of(head, guess, (noisy - a * guess) / s, a, s)  # the same noisy sample explained by another x0
    expected = per_sample((said - target_of(head, x0, eps, a, s)) ** 2)
    found = weight_of(head, alpha, sigma) * per_sample((guess - x0) ** 2)
    torch.testing.assert_close(found, expected)


def test_the_other_weights():
    sigma = torch.tensor([0.1, 2.0])
    torch.testing.assert_close(weight_of("edm", torch.ones(2), sigma), (sigma**2 + 0.25) / (sigma * 0.5) ** 2)
    torch.testing.assert_close(weight_of("min-snr", torch.ones(2), sigma), torch.tensor([5.0, 0.25]))
    with pytest.raises(ValueError, match="snr"):
        weight_of("snr", torch.ones(2), sigma)


def test_pseudo_huber_between_its_limits():
    s, t = torch.randn(2, 4, 6, dtype=torch.float64)
    e = s - t
    torch.testing.assert_close(pseudo_huber(s, t, c=1e-9), e.abs().mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pseudo_huber(s, t, c=1e4), (e**2).mean(1) / 2e4, rtol=1e-4, atol=1e-10)
    assert pseudo_huber(s, s).abs().max() == 0
    assert find("pseudo-huber") is pseudo_huber
    assert torch.autograd.gradcheck(lambda x: pseudo_huber(x, t, c=0.1), s.requires_grad_())


def test_a_distance_by_its_name():
    s, t = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(apart(s, t), (s - t).square().mean((1, 2)))
    torch.testing.assert_close(apart(s, t, "huber", 0.3), pseudo_huber(s, t, c=0.3))
    assert apart(s, s).abs().max() == apart(s, s, "huber").abs().max() == 0
