"""Distributions of times: their quantiles, the cut to what networks know, and how they are written."""

import pytest
import torch

from limbeck.diffusion.noise import VE, VP, Flow
from limbeck.diffusion.times import LogitNormal, LogNormal, Uniform, time_of_level, to_times
from limbeck.errors import RecipeError

QUANTILES = torch.tensor([0.02275013, 0.15865525, 0.5, 0.84134475, 0.97724987])  # of N(0, 1) at -2, -1, 0, 1, 2


def test_uniform_shares():
    u = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(Uniform(low=0.02, high=0.98)(Flow(), u), torch.tensor([0.02, 0.5, 0.98]))
    assert Uniform(low=0.02, high=0.98)(VP(), u).tolist() == [20, 500, 980]
    assert Uniform()(VP(), u).tolist() == [1, 500, 1000]  # step 0 of the papers is time 1: time 0 has no noise


def test_logit_normal_quantiles():
    z = torch.tensor([-2.0, -1, 0, 1, 2])
    torch.testing.assert_close(LogitNormal(mean=0.3, std=0.7)(Flow(), QUANTILES), torch.sigmoid(0.3 + 0.7 * z))


@pytest.mark.parametrize("noise", [VE(), Flow(), VP()], ids=["ve", "flow", "vp"])
def test_log_normal_levels(noise):
    z = torch.tensor([-2.0, -1, 0, 1, 2])
    t = LogNormal(mean=-1.2, std=1.2)(noise, QUANTILES)
    level = noise.sigma(t) / noise.alpha(t)
    tolerance = 0.02 if isinstance(noise, VP) else 1e-4  # discrete steps
    torch.testing.assert_close(level.log(), -1.2 + 1.2 * z, rtol=tolerance, atol=tolerance)


def test_levels_beyond_the_range_are_cut():
    assert time_of_level(VE(), torch.tensor([1e-9, 1e9])).tolist() == pytest.approx([0.002, 80])
    t = LogNormal(mean=50)(Flow(), torch.tensor([0.5]))
    assert t.item() <= 1


def test_ways_to_write_them():
    assert to_times([0.1, 0.9]) == Uniform(low=0.1, high=0.9)
    assert to_times("log-normal") == LogNormal()
    assert to_times({"use": "logit-normal", "std": 2}).spec() == {"use": "logit-normal", "mean": 0.0, "std": 2.0}
    with pytest.raises(RecipeError, match="must not lie above"):
        to_times([0.9, 0.1])
    with pytest.raises(RecipeError, match="uniform"):
        to_times("unifrom")
