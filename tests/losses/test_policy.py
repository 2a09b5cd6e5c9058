"""Returns and the clipped surrogate: sums written out, limits, gradients in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.losses.policy import clipped_surrogate, discounted, remaining


def runs(rows, width, seed):
    """Rewards, and masks of one run each (some of them empty)."""
    g = torch.Generator().manual_seed(seed)
    begin = torch.randint(0, width + 1, (rows, 1), generator=g)
    end = begin + torch.randint(0, width + 1, (rows, 1), generator=g)
    at = torch.arange(width)
    return torch.randn(rows, width, generator=g, dtype=torch.float64), (at >= begin) & (at < end)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_returns_are_the_sums_that_they_stand_for(rows, width, seed, discount):
    rewards, mask = runs(rows, width, seed)
    found = discounted(rewards.masked_fill(~mask, torch.nan), mask, discount)
    for i in range(rows):
        for t in range(width):
            later = [k for k in range(t, width) if mask[i, k]]
            expected = sum(discount ** (k - t) * rewards[i, k] for k in later) if mask[i, t] else 0.0
            assert float(found[i, t]) == pytest.approx(float(expected), abs=1e-9)
            assert float(remaining(mask)[i, t]) == len(later)


def test_the_surrogate_is_the_smaller_gain():
    log_ratio = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.1, 0.0]], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0, 3.0]], dtype=torch.float64)
    rho = log_ratio.exp()
    values = clipped_surrogate(log_ratio, advantage, 0.2)
    expected = torch.tensor([[-2.4, 0.0, 0.0, 1.6, 0.0, -3.0]], dtype=torch.float64)
    expected[0, 1:3] = (-advantage * rho)[0, 1:3]
    expected[0, 4] = -rho[0, 4]
    torch.testing.assert_close(values, expected)
    (grad,) = torch.autograd.grad(values.sum(), log_ratio)
    # what was pushed far enough already is pushed no further; what went the wrong way is
    kept = torch.tensor([[False, True, True, False, True, True]])
    torch.testing.assert_close(grad, torch.where(kept, -advantage * rho, 0.0))


def test_at_a_ratio_of_one_the_gradient_is_that_of_the_plain_policy():
    advantage = torch.randn(3, 5, dtype=torch.float64)
    log_q = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(clipped_surrogate(log_q, advantage, 0.2).sum(), log_q)
    torch.testing.assert_close(grad, -advantage)
