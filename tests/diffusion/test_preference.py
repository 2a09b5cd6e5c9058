"""Densities of steps, and who is preferred."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.diffusion.preference import dominates, log_density


def test_it_is_the_normal_density_over_the_number_of_dimensions():
    torch.manual_seed(0)
    x, mean, sigma = torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.rand(4) + 0.1
    expected = torch.distributions.Normal(mean, sigma[:, None, None]).log_prob(x).mean((1, 2))
    torch.testing.assert_close(log_density(x, mean, sigma), expected)


def test_better_in_all_rewards_or_not_at_all():
    a = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.0, 3.0], [1.0, 1.0]])
    b = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
    assert dominates(a, b).tolist() == [1, 0, 0, -1]
    assert dominates(a[:, 0], b[:, 0]).tolist() == [0, 0, -1, -1]


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=5))
def test_what_is_preferred_to_it_is_the_opposite(pairs):
    a, b = torch.tensor(pairs).unbind(1)
    assert torch.equal(dominates(a, b), (a - b).sign())
    assert torch.equal(dominates(a, b), -dominates(b, a))
