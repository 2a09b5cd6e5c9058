"""z-scores and the divergence between them: the formula, what they do not change for, gradients, edges and masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find, kl
from limbeck.losses.standardise import spread, standardised, standardised_kl

inf, nan = math.inf, math.nan


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_recipes_know_it_by_name():
    assert find("standardised-kl") is standardised_kl


def test_it_is_kl_of_the_papers_z_scores():
    s, t = logits(5, 7), logits(5, 7, seed=1)
    for_kl = [(x - x.mean(1, keepdim=True)) / (1e-7 + x.std(1, keepdim=True)) for x in (s, t)]
    torch.testing.assert_close(standardised(s), for_kl[0], rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(standardised_kl(s, t, temperature=3.0), kl(*for_kl, temperature=3.0))
    torch.testing.assert_close(standardised_kl(s, t), kl(*for_kl, temperature=2.0))


@given(st.floats(0.01, 100), st.floats(-100, 100), st.floats(0.01, 100))
def test_shift_and_scale_of_either_side_change_nothing(a, b, c):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    expected = standardised_kl(s, t)
    torch.testing.assert_close(standardised_kl(a * s + b, c * t - b), expected, rtol=1e-4, atol=1e-5)
    assert float((standardised_kl(-s, t) - expected).abs().min()) > 1e-3  # but for the sign


def test_the_sum_is_zero_and_the_variance_one():
    z = standardised(logits(5, 7))
    torch.testing.assert_close(z.sum(1), torch.zeros(5).double())
    torch.testing.assert_close(z.var(1), torch.ones(5).double())


def test_the_gradient_leaves_shift_and_scale_alone():
    """It is orthogonal to the ones and to the logits themselves; and it is right."""
    s, t = logits(3, 5).requires_grad_(), logits(3, 5, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(standardised_kl(s, t).sum(), s)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3).double())
    torch.testing.assert_close((gradient * s).sum(1), torch.zeros(3).double(), atol=1e-6, rtol=0)
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(standardised_kl, (s, t))
    assert torch.autograd.gradcheck(lambda a, b: standardised_kl(a, b, mask=mask), (s, t))


@pytest.mark.parametrize("row", [[0.1] * 5, [0.0] * 5, [-7.3e5] * 5, [3.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_that_are_all_the_same_are_zero_without_a_gradient(row, dtype):
    """The formula's gradient there is 1 / eps = 1e7 and would throw a student whose last layer begins at zero."""
    x = torch.tensor([row], dtype=dtype, requires_grad=True)
    t = torch.arange(len(row), dtype=dtype)[None]
    assert standardised(x).tolist() == [[0.0] * len(row)]
    (gradient,) = torch.autograd.grad(standardised_kl(x, t).sum(), x)
    assert gradient.tolist() == [[0.0] * len(row)]


def test_a_class_that_is_ruled_out_does_not_enter_mean_and_deviation():
    s, t = logits(3, 4), logits(3, 4, seed=1)
    end = torch.full((3, 1), -inf).double()
    wide = torch.cat([s, end], 1).requires_grad_()
    torch.testing.assert_close(standardised(wide), torch.cat([standardised(s), end], 1))
    value = standardised_kl(wide, torch.cat([t, end], 1))
    torch.testing.assert_close(value, standardised_kl(s, t))
    assert torch.autograd.grad(value.sum(), wide)[0][:, 4].tolist() == [0.0] * 3


def test_maps_and_masks():
    s, t = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    torch.testing.assert_close(standardised_kl(s, t, dim=1), standardised_kl(s.movedim(1, -1), t.movedim(1, -1)))
    mask = torch.tensor([True, False])
    bad = torch.where(mask[:, None, None, None], s, nan).requires_grad_()
    value = standardised_kl(bad, t, dim=1, mask=mask, weight=torch.tensor([2.0, nan]))
    torch.testing.assert_close(value[0], 2 * standardised_kl(s, t, dim=1)[0])
    assert not value[1].any()
    gradient = torch.autograd.grad(value.sum(), bad)[0]
    assert not gradient[1].any()
    assert gradient[0].isfinite().all()


@given(st.lists(st.floats(-50, 50, width=16), min_size=1, max_size=6), st.sampled_from([torch.float16, torch.bfloat16]))
@settings(max_examples=60)
def test_half_precision_stays_finite_and_zero_for_equals(row, dtype):
    x = torch.tensor([row]).to(dtype).requires_grad_()
    assert standardised_kl(x, x.detach().clone()).tolist() == [0.0]
    value = standardised_kl(x, x.detach().flip(1), temperature=0.1)
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    assert dtype == torch.float16 or torch.autograd.grad(value.sum(), x)[0].isfinite().all()  # steep ones overflow fp16


def test_spread_of_masked_entries_is_that_of_the_others():
    x = logits(6, 3)
    mask = torch.tensor([1, 1, 0, 1, 0, 1]).bool()[:, None]
    offset, length = spread(torch.where(mask, x, nan), 0, mask)
    kept = x[mask[:, 0]]
    torch.testing.assert_close(offset[mask[:, 0]], kept - kept.mean(0))
    torch.testing.assert_close(length, (kept - kept.mean(0)).norm(dim=0, keepdim=True))
    assert not offset[~mask[:, 0]].any()
    assert spread(x, 0, torch.zeros_like(mask))[1].tolist() == [[0.0] * 3]


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3)
    with pytest.raises(RecipeError, match=r"\[2, 3\], the teacher's \[2, 4\]"):
        standardised_kl(x, torch.zeros(2, 4))
    with pytest.raises(RecipeError, match="temperature -1: needed is a number above 0"):
        standardised_kl(x, x, temperature=-1)
