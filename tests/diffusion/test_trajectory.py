"""The importance weight of a state that was noised by the student's own answer too."""

import pytest
import torch

from limbeck.diffusion.noise import VP, Flow
from limbeck.diffusion.trajectory import importance


@pytest.mark.parametrize("noise", [VP(), Flow()], ids=["vp", "flow"])
def test_the_weight_is_a_ratio_of_densities_and_one_without_noise_in_the_state(noise):
    torch.manual_seed(0)
    x0, eps, xi = (torch.randn(6, 3, dtype=torch.float64) for _ in range(3))
    mid, t = (noise.at(torch.full((6,), share, dtype=torch.float64)) for share in (0.4, 0.7))
    x_t = noise.further(noise.renoise(x0, mid, eps), mid, t, xi)
    m = (x_t - noise.alpha(t)[:, None] * x0) / noise.sigma(t)[:, None]  # the noise that x_t was made with
    expected = (-0.5 * (m.square() - xi.square()).mean(1)).exp()
    torch.testing.assert_close(importance(noise, mid, t, eps, xi), expected)
    none = torch.zeros_like(mid)
    torch.testing.assert_close(importance(noise, none, t, eps, xi), torch.ones(6, dtype=torch.float64))
