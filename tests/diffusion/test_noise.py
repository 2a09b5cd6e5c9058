"""Schedules: their defining identities, diffusers' tables, shares and times, noise on noise, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.diffusion.noise import VE, VP, Flow, refuse_uncovered, to_noise, wide
from limbeck.errors import RecipeError

ALL = [VP(), VP(betas="cosine"), VP(betas="scaled", start=0.00085, end=0.012), VE(), Flow(), Flow(shift=3.0)]


def shares(n=50):
    return torch.linspace(0, 1, n, dtype=torch.float64)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_noise_grows_and_shares_are_the_inverse_of_times(noise):
    t = noise.at(shares())
    level = noise.sigma(t) / noise.alpha(t)
    assert (level[1:] > level[:-1]).all()
    torch.testing.assert_close(noise.share(t), shares(), rtol=1e-9, atol=1e-9)
    assert t[-1] == pytest.approx(noise.last)
    zero = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(noise.alpha(zero), torch.ones_like(zero))
    assert torch.equal(noise.sigma(zero), zero)


def test_vp_preserves_variance_and_flows_are_straight():
    t = torch.linspace(0, 1000, 333, dtype=torch.float64)
    torch.testing.assert_close(VP().alpha(t) ** 2 + VP().sigma(t) ** 2, torch.ones_like(t))
    u = shares()
    torch.testing.assert_close(Flow().alpha(u) + Flow().sigma(u), torch.ones_like(u))


@pytest.mark.parametrize(
    ("noise", "options"),
    [
        (VP(), {"beta_schedule": "linear"}),
        (VP(betas="scaled", start=0.00085, end=0.012), {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (VP(betas="cosine"), {"beta_schedule": "squaredcos_cap_v2"}),
        (VP(zero_terminal=True), {"rescale_betas_zero_snr": True}),
    ],
)  # fmt: skip
def test_steps_are_those_of_diffusers(noise, options):
    diffusers = pytest.importorskip("diffusers")
    bar = diffusers.DDIMScheduler(**options).alphas_cumprod.double()
    t = torch.arange(1, 1001).double()
    torch.testing.assert_close(
        noise.alpha(t) ** 2, bar, rtol=2e-4, atol=2e-7
    )  # theirs are products of 1000 fp32 numbers
    assert torch.equal(noise.fed(t), t - 1)


def test_log_alpha_is_straight_between_steps():
    noise, t = VP(), torch.tensor([10.0, 10.25, 11.0], dtype=torch.float64)
    a, b, c = noise.alpha(t).log().tolist()
    assert b == pytest.approx(0.75 * a + 0.25 * c, rel=1e-12)


def test_zero_terminal_noise_leaves_nothing():
    noise = VP(zero_terminal=True)
    assert noise.alpha(torch.tensor(1000.0)) == 0
    assert noise.sigma(torch.tensor(1000.0)) == 1
    near = noise.alpha(torch.tensor([998.0, 999.0, 999.5]).double())
    assert torch.isfinite(near).all()


def test_grids_are_those_of_the_papers():
    assert VP().grid(4).tolist() == [1000, 750, 500, 250, 0]  # steps 999, 749, 499, 249 of DMD2
    assert Flow().grid(2).tolist() == [1, 0.5, 0]
    i = torch.arange(5, dtype=torch.float64)
    karras = (80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(VE().grid(5), torch.cat([karras, torch.zeros(1)]).float())
    assert VE().grid(1).tolist() == pytest.approx([80, 0])
    shifted = Flow(shift=5).grid(4)
    assert shifted.tolist() == pytest.approx([5 * u / (1 + 4 * u) for u in (1, 0.75, 0.5, 0.25, 0)])


@given(st.sampled_from(ALL), st.floats(0.05, 0.95), st.floats(0.05, 0.95))
def test_noise_upon_noise_is_noise_at_once(noise, one, two):
    """x_s noised further to t has the mean and the variance of x0 noised to t."""
    low, high = sorted((one, two))
    s, t = noise.at(torch.tensor([low, high], dtype=torch.float64))
    ratio = noise.alpha(t) / noise.alpha(s)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    mean = noise.further(zero + noise.alpha(s), s[None], t[None], zero)
    added = noise.further(zero, s[None], t[None], zero + 1)
    torch.testing.assert_close(mean, zero + noise.alpha(t))
    assert float(added) ** 2 + float(ratio * noise.sigma(s)) ** 2 == pytest.approx(float(noise.sigma(t)) ** 2, rel=1e-9)


def test_a_time_per_sample_and_half_precision():
    x = torch.randn(3, 2, 4, dtype=torch.bfloat16)
    t = torch.tensor([0.0, 0.5, 1.0])
    out = Flow().renoise(x, t, torch.ones_like(x))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out[0], x[0].float())
    torch.testing.assert_close(out[2], torch.ones(2, 4))
    assert wide(t, x).shape == (3, 1, 1)


def test_specifications_are_read_back():
    for noise in ALL:
        assert to_noise(noise.spec()) == noise
    assert to_noise("ve") == VE()
    with pytest.raises(RecipeError, match="vp"):
        to_noise("vpp")
    with pytest.raises(RecipeError, match="betas"):
        to_noise({"use": "vp", "beta": "cosine"})


def test_a_teacher_that_has_not_seen_so_much_noise_is_refused():
    refuse_uncovered(Flow(), 0.9, Flow(), "teacher")
    refuse_uncovered(VP(), 1000, VP(), "teacher")
    level = math.exp(-float(VP()._table()[-1]) / 2)
    with pytest.raises(RecipeError, match="never seen"):
        refuse_uncovered(VE(), 80.0 if level > 100 else level + 100, VE(most=20), "teacher")
    with pytest.raises(RecipeError, match="noise level"):
        refuse_uncovered(Flow(), 1.0, VP(), "teacher")
