"""Densities of steps, and who is preferred."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.diffusion.preference import dominates, log_density, scored
from limbeck.errors import RecipeError


def test_it_is_the_normal_density_over_the_number_of_dimensions():
    torch.manual_seed(0)
    x, mean, sigma = torch.randn(4, 2, 3), torch.randn(4, 2, 3), torch.rand(4) + 0.1
    expected = torch.distributions.Normal(mean, sigma[:, None, None]).log_prob(x).mean((1, 2))
    torch.testing.assert_close(log_density(x, mean, sigma), expected)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_it_is_a_density_in_one_dimension(sigma):
    """The integral of exp l is 1; of n dimensions that of exp(n l), so the mean over dimensions is what tempers it."""
    x = torch.linspace(-12 * sigma, 12 * sigma, 4001, dtype=torch.float64)[:, None] + 0.3
    mean, s = torch.full_like(x, 0.3), torch.full((len(x),), sigma, dtype=torch.float64)
    assert torch.trapezoid(log_density(x, mean, s).exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-12)
    pairs = torch.stack([x[:, 0], x[:, 0].flip(0)], 1)
    each = [log_density(pairs[:, i : i + 1], mean, s) for i in (0, 1)]
    torch.testing.assert_close(2 * log_density(pairs, mean, s), each[0] + each[1])


def test_scores_are_a_number_per_sample_or_several():
    samples = torch.ones(3, 2)
    assert scored(lambda x, batch: x.sum(1), samples, {}).shape == (3, 1)
    assert scored(lambda x, batch: x, samples, {}).shape == (3, 2)
    for wrong in (lambda x, batch: x.sum(), lambda x, batch: x.sum(1).tolist(), lambda x, batch: x[:1].sum(1)):
        with pytest.raises(RecipeError, match="one number per sample"):
            scored(wrong, samples, {})


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
