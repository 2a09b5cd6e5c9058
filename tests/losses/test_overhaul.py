"""OFD's partial distance entry by entry, its gradients, and the margin against a Monte Carlo mean and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.overhaul import expected_negative, partial_l2

values = st.floats(-3, 3, allow_nan=False)


def of_one(s: float, t: float, m: float) -> float:
    """The four cases as the paper's code lists them."""
    if t <= m and s > m:
        return (s - m) ** 2
    if m < t <= 0 and s > t:
        return (s - t) ** 2
    if t > 0:
        return (s - t) ** 2
    return 0.0


@given(s=values, t=values, m=st.floats(-2, -0.01))
def test_each_entry_falls_into_one_of_four_cases(s, t, m):
    tensors = [torch.tensor([[x]], dtype=torch.float64) for x in (s, t)]
    margin = torch.tensor([m], dtype=torch.float64)
    assert partial_l2(*tensors, margin=margin).item() == pytest.approx(of_one(s, t, m), abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_it_is_the_sum_over_a_sample(shape):
    s, t = torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)
    margin = torch.tensor([-0.3, -0.5, -1.0], dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        for c in range(3):
            for x, y in zip(s[b, c].flatten().tolist(), t[b, c].flatten().tolist()):
                expected[b] += of_one(x, y, margin[c].item())
    torch.testing.assert_close(partial_l2(s, t, margin=margin), expected)


def test_below_the_margin_there_is_neither_loss_nor_gradient():
    margin = torch.tensor([-0.5, -1.0], dtype=torch.float64)
    s = (margin.view(1, 2, 1, 1) - torch.rand(2, 2, 3, 3).double()).requires_grad_()
    t = margin.view(1, 2, 1, 1) - torch.rand(2, 2, 3, 3).double()
    found = partial_l2(s, t, margin=margin)
    (gradient,) = torch.autograd.grad(found.sum(), s)
    assert found.tolist() == [0.0, 0.0]
    assert not gradient.any()


def test_the_gradient_is_twice_the_difference_where_it_counts():
    s = torch.tensor([[2.0, 0.5, -0.2, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[1.0, -0.3, -0.1, -9.0, -9.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(partial_l2(s, t, margin=torch.full((5,), -1.0)).sum(), s)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 1.6, 0.0, 0.0, 3.0]], dtype=torch.float64))


def test_gradcheck():
    s, t = (torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    margin = torch.tensor([-0.3, -0.5, -1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: partial_l2(a, b, margin=margin), (s, t))


def test_without_negative_responses_it_is_the_squared_distance():
    s, t = torch.randn(3, 4, 2, 2), torch.rand(3, 4, 2, 2) + 0.1
    torch.testing.assert_close(partial_l2(s, t, margin=-1.0), (s - t).square().flatten(1).sum(1))


def test_masks_and_weights():
    s, t = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[0, 2:] = False
    mask[1] = False
    spoilt = s.clone()
    spoilt[~mask[:, None].expand_as(s)] = float("nan")
    spoilt.requires_grad_()
    found = partial_l2(spoilt, t, margin=-0.5, mask=mask, weight=torch.tensor([2.0, 1.0, 1.0]))
    expected = torch.stack(
        [
            2 * partial_l2(s[:1, :, :2], t[:1, :, :2], margin=-0.5)[0],
            torch.zeros(()),
            partial_l2(s[2:], t[2:], margin=-0.5)[0],
        ]
    )
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), spoilt)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


def test_half_precision_is_widened_and_shapes_are_checked():
    s, t = torch.randn(2, 3, 4).bfloat16(), torch.randn(2, 3, 4).bfloat16()
    torch.testing.assert_close(partial_l2(s, t, margin=-1.0), partial_l2(s.float(), t.float(), margin=-1.0))
    with pytest.raises(RecipeError, match="equal shapes"):
        partial_l2(s, t[:, :2])
    assert find("partial-l2") is partial_l2


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.5, 1.0), (-1.0, 0.5), (2.0, 1.0), (-3.0, 2.0)])
def test_the_margin_is_the_mean_of_the_negative_responses(mean, deviation):
    x = mean + deviation * torch.randn(2_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = expected_negative(torch.tensor([mean]).double(), torch.tensor([deviation]).double())
    assert found.item() == pytest.approx(x[x < 0].mean().item(), abs=4e-3)


def test_the_margin_in_closed_forms():
    pair = [torch.tensor([x], dtype=torch.float64) for x in (0.0, 2.0)]
    assert expected_negative(*pair).item() == pytest.approx(-2 * math.sqrt(2 / math.pi))  # half a normal distribution
    far = [torch.tensor([x], dtype=torch.float64) for x in (-50.0, 1.0)]
    assert expected_negative(*far).item() == pytest.approx(-50.0)  # always negative: its mean
    rare = [torch.tensor([x], dtype=torch.float64) for x in (4.0, 1.5)]
    assert expected_negative(rare[0], rare[1] / 2).item() == pytest.approx(-2.25)  # rarer than 1 in 1000: -3 deviations


@given(mean=st.floats(-20, 20), deviation=st.one_of(st.floats(-10, 10), st.just(0.0)))
def test_a_margin_is_finite_and_never_above_zero(mean, deviation):
    found = expected_negative(torch.tensor([mean]), torch.tensor([deviation])).item()
    assert math.isfinite(found)
    assert found <= 0
    if deviation == 0:
        assert found == pytest.approx(min(mean, 0.0))
