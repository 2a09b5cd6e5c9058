"""Adversarial losses: values at zero, gradients in closed form, optima, and pairs."""

import math

import pytest
import torch

from limbeck.losses.adversarial import fooled, relativistic, told_fake, told_real

H = torch.tensor([-3.0, -1.0, 0.0, 0.5, 4.0], dtype=torch.float64)


def slope(f):
    h = H.clone().requires_grad_()
    f(h).sum().backward()
    return h.grad


def test_softplus_has_the_gradients_of_the_logistic_game():
    torch.testing.assert_close(slope(fooled), -torch.sigmoid(-H))
    torch.testing.assert_close(slope(told_real), -torch.sigmoid(-H))
    torch.testing.assert_close(slope(told_fake), torch.sigmoid(H))
    assert fooled(torch.zeros(1)).item() == pytest.approx(math.log(2))


def test_hinge_and_wasserstein():
    assert told_real(H, "hinge").tolist() == [4, 2, 1, 0.5, 0]
    assert told_fake(H, "hinge").tolist() == [0, 0, 1, 1.5, 5]
    for game in ("hinge", "wasserstein"):
        assert torch.equal(fooled(H, game), -H)
    assert torch.equal(told_fake(H, "wasserstein"), H)
    assert torch.equal(told_real(H, "wasserstein"), -H)


@pytest.mark.parametrize("real_share", [0.2, 0.5, 0.9])
def test_the_best_discriminator_is_the_log_ratio_of_densities(real_share):
    h = torch.tensor(math.log(real_share / (1 - real_share)), dtype=torch.float64, requires_grad=True)
    (real_share * told_real(h) + (1 - real_share) * told_fake(h)).backward()
    assert h.grad.item() == pytest.approx(0, abs=1e-12)


def test_pairs_are_judged_by_their_difference():
    a, b = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(relativistic(a + 9, b + 9), relativistic(a, b))
    torch.testing.assert_close(relativistic(a, b), torch.log1p(torch.exp(b - a)))
    assert torch.isfinite(relativistic(torch.tensor([-1e4]), torch.tensor([1e4]))).all()
