import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from limbeck.losses.ranking import kendall_tau


@given(st.integers(0, 10_000), st.integers(2, 9), st.booleans())
def test_it_is_scipys_tau_b_also_with_ties(seed, classes, ties):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 5, classes, generator=g)
    if ties:
        a, b = a.round(), b.round()
    for row, (x, y) in enumerate(zip(a, b)):
        expected = kendalltau(x.numpy(), y.numpy()).statistic
        found = kendall_tau(a, b)[row]
        assert torch.isclose(
            found, torch.tensor(0.0 if expected != expected else expected, dtype=found.dtype), atol=1e-6
        )


def test_the_order_is_along_any_dimension_and_maps_of_rising_functions_do_not_matter():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 6, 4, 4, generator=g)
    per_pixel = kendall_tau(a, b, dim=1)
    assert per_pixel.shape == (3, 4, 4)
    torch.testing.assert_close(per_pixel[1, 2, 3], kendall_tau(a[1, :, 2, 3], b[1, :, 2, 3]))
    torch.testing.assert_close(kendall_tau(a.exp(), b * 3 - 1, dim=1), per_pixel)
    assert (kendall_tau(a, a, dim=1) == 1).all()
    assert (kendall_tau(a, -a, dim=1) == -1).all()
    assert (kendall_tau(a.bfloat16(), a.bfloat16() * 0, dim=1) == 0).all()
