"""Exact denoisers of mixtures against quadrature and autograd; small networks: shapes, classes, further inputs that begin at zero."""

import math

import pytest
import torch

from limbeck.diffusion.noise import VE, VP, Flow
from limbeck.models.toy import Mixture, PictureDenoiser, PointDenoiser, ring


def times(noise, share, n):
    return noise.at(torch.full((n,), share, dtype=torch.float64))


@pytest.mark.parametrize("noise", [VP(), VE(), Flow()], ids=["vp", "ve", "flow"])
def test_a_mixture_in_one_dimension_is_the_posterior_mean_by_quadrature(noise):
    means, stds, weights = [[-1.0], [0.5]], [0.3, 0.6], [0.25, 0.75]
    model = Mixture(means, stds, weights=weights, noise=noise).double()
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]
    t = times(noise, 0.5, 7)
    alpha, sigma = noise.alpha(t)[0], noise.sigma(t)[0]
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    prior = sum(w / s * torch.exp(-((grid - m[0]) ** 2) / (2 * s**2)) for m, s, w in zip(means, stds, weights))
    likelihood = torch.exp(-((x - alpha * grid) ** 2) / (2 * sigma**2))
    expected = (grid * prior * likelihood).sum(1) / (prior * likelihood).sum(1)
    torch.testing.assert_close(model.predict(x, t).squeeze(1), expected, rtol=1e-6, atol=1e-6)


def test_its_score_is_the_gradient_of_the_log_density():
    model, noise = ring(5, std=0.2).double(), Flow()
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    t = torch.full((6,), 0.4, dtype=torch.float64)
    var = 0.6**2 * model.std**2 + 0.4**2
    apart = (x[:, None] - 0.6 * model.means).square().sum(2)
    log = torch.logsumexp(model.log_weights - apart / (2 * var) - (2 * math.pi * var).log(), 1).sum()
    (expected,) = torch.autograd.grad(log, x)
    torch.testing.assert_close(model.prediction(x, t, {}).score, expected)
    assert noise == model.noise


def test_a_class_leaves_its_own_components_and_no_class_leaves_all():
    model = Mixture([[0.0, 0], [1, 0], [0, 1]], 0.1, labels=[0, 1, 1])
    x, t = torch.randn(4, 2), torch.full((4,), 0.5)
    alone = Mixture([[0.0, 0]], 0.1)
    zeros = torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(model.prediction(x, t, {"condition": zeros}).x0, alone.prediction(x, t, {}).x0)
    every = Mixture([[0.0, 0], [1, 0], [0, 1]], 0.1).prediction(x, t, {}).x0
    dropped = model.prediction(x, t, {"condition": zeros}, torch.ones(4, dtype=torch.bool)).x0
    torch.testing.assert_close(dropped, every)
    assert model.guidable


def test_samples_have_the_mixtures_moments_and_classes():
    model = Mixture([[0.0], [4.0]], [0.5, 1.0], weights=[3, 1], labels=[1, 0])
    x, label = model.draw(40_000, torch.Generator().manual_seed(0))
    assert float(x.mean()) == pytest.approx(1.0, abs=0.03)
    assert float((label == 1).float().mean()) == pytest.approx(0.75, abs=0.01)
    assert float(x[label == 0].std()) == pytest.approx(1.0, rel=0.03)


def test_far_away_and_without_noise_it_stays_finite():
    model = ring()
    x = torch.tensor([[1e4, -1e4], [0.0, 0.0]])
    for t in (0.0, 1e-4, 1.0):
        assert torch.isfinite(model.predict(x, torch.full((2,), t))).all()
    torch.testing.assert_close(model.predict(x, torch.zeros(2)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("build", [PointDenoiser, PictureDenoiser])
@pytest.mark.parametrize("noise", ["vp", "ve", "flow"])
def test_small_networks_keep_shapes_and_know_classes(build, noise):
    torch.manual_seed(0)
    model = build(width=16, noise=noise, head="edm" if noise == "ve" else "epsilon", classes=3)
    x = torch.randn(5, *model.shape)
    t = model.noise.at(torch.rand(5))
    label = torch.tensor([0, 1, 2, 0, 1])
    out = model(x, label, time=t)["prediction"]
    assert out.shape == x.shape
    assert not torch.equal(out, model(x, label.flip(0), time=t)["prediction"])
    nothing = model(x, label, time=t, drop=torch.ones(5, dtype=torch.bool))["prediction"]
    assert torch.equal(nothing, model(x, torch.full((5,), 3), time=t)["prediction"])
    assert dict(model.named_modules())[model.middle] is not None


def test_further_inputs_begin_at_nothing():
    torch.manual_seed(0)
    plain = PointDenoiser(width=16)
    torch.manual_seed(0)
    more = PointDenoiser(width=16, also=["guidance"])
    more.load_state_dict(plain.state_dict(), strict=False)
    x, t = torch.randn(4, 2), torch.rand(4)
    told = more(x, time=t, guidance=torch.rand(4))["prediction"]
    assert torch.equal(told, plain(x, time=t)["prediction"])
    told.sum().backward()
    assert more.further["guidance"].layer.weight.grad.abs().sum() > 0
