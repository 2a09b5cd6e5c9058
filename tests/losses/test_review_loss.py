"""HCL: written out with two pooled maps, its weights, its limits, and gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.review import hcl


def slowly(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The paper's loop, for one sample: pool both maps, compare, add up."""
    total, weights, share = F.mse_loss(a, b), 1.0, 1.0
    for side in (4, 2, 1):
        if side >= a.shape[2]:
            continue
        share /= 2
        pools = [F.adaptive_avg_pool2d(x, (side, min(side, x.shape[3]))) for x in (a, b)]
        total, weights = total + share * F.mse_loss(*pools), weights + share
    return total / weights


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    seed=st.integers(0, 9),
)
def test_it_is_the_loop_over_pooled_maps(batch, channels, height, width, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(batch, channels, height, width, dtype=torch.float64, generator=g) for _ in range(2))
    expected = torch.stack([slowly(x[None], y[None]) for x, y in zip(a, b)])
    torch.testing.assert_close(hcl(a, b), expected)
    torch.testing.assert_close(hcl(a, b).mean(), slowly(a, b))  # the published reduction: mean over everything


@pytest.mark.parametrize(("height", "weights"), [(1, 1.0), (2, 1.5), (3, 1.75), (4, 1.75), (5, 1.875), (32, 1.875)])
def test_a_constant_difference_counts_alike_at_every_size(height, weights):
    """Of d everywhere each grid sees d^2, so the normalised sum is d^2; unnormalised it would be `weights` times that."""
    a = torch.randn(2, 3, height, height, dtype=torch.float64)
    torch.testing.assert_close(hcl(a + 0.7, a), torch.full((2,), 0.49, dtype=torch.float64))
    # a difference of mean 0 in every window of every grid is seen at full size only
    if height % 8 == 0:
        sign = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(height // 2)
        torch.testing.assert_close(hcl(a + sign, a), torch.full((2,), 1 / weights, dtype=torch.float64))


def test_vectors_are_compared_by_the_mean_square():
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(hcl(a, b), (a - b).square().mean(1))
    torch.testing.assert_close(hcl(a[..., None, None], b[..., None, None]), hcl(a, b))


@pytest.mark.parametrize("side", [4, 7, 8])
def test_gradients(side):
    a, b = (torch.randn(2, 2, side, side, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(hcl, (a, b))


def test_it_depends_on_the_difference_only_and_is_quadratic():
    a, b, c = (torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(3))
    torch.testing.assert_close(hcl(a + c, b + c), hcl(a, b))
    torch.testing.assert_close(hcl(3 * a, 3 * b), 9 * hcl(a, b))
    assert hcl(a, a.clone()).tolist() == [0.0, 0.0]


def test_masks_and_weights():
    a, b = torch.randn(3, 2, 8, 8), torch.randn(3, 2, 8, 8)
    expected = hcl(a, b)
    spoilt = a.clone()
    spoilt[1] = float("nan")
    spoilt.requires_grad_()
    mask, weight = torch.tensor([True, False, True]), torch.tensor([2.0, 5.0, 0.5])
    found = hcl(spoilt, b, mask=mask, weight=weight)
    torch.testing.assert_close(found, torch.stack([2 * expected[0], torch.zeros(()), expected[2] / 2]))
    (gradient,) = torch.autograd.grad(found.sum(), spoilt)
    assert gradient[1].tolist() == torch.zeros(2, 8, 8).tolist()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    a, b = torch.randn(2, 3, 8, 8).to(dtype), torch.randn(2, 3, 8, 8).to(dtype)
    assert hcl(a, b).dtype == torch.float32
    torch.testing.assert_close(hcl(a, b), hcl(a.float(), b.float()))


def test_what_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match=r"\[2, 5, 3\]"):
        hcl(torch.zeros(2, 5, 3), torch.zeros(2, 5, 3))
    with pytest.raises(RecipeError, match="compares equal shapes"):
        hcl(torch.zeros(2, 5, 4, 4), torch.zeros(2, 5, 8, 8))


def test_a_recipe_finds_it():
    assert find("hcl") is hcl
