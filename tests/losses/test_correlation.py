"""Pearson relations: the formula, by numpy; what they do not change for; gradients, edges, masks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.correlation import correlation, pearson_classes, pearson_samples

BOTH = [pearson_samples, pearson_classes]
nan, inf = math.nan, math.inf


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_recipes_know_them_by_name():
    assert [find("pearson-samples"), find("pearson-classes")] == BOTH


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_they_are_one_minus_numpys_correlation(temperature):
    s, t = logits(6, 5), logits(6, 5, seed=1)
    a, b = ((x / temperature).softmax(1).numpy() for x in (s, t))
    rows = torch.tensor([1 - np.corrcoef(a[i], b[i])[0, 1] for i in range(6)])
    columns = np.mean([1 - np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(5)])
    plain = pearson_samples(s, t, temperature=temperature, scale=False)
    torch.testing.assert_close(plain, rows, rtol=1e-4, atol=1e-5)  # eps stands beside a product of lengths
    torch.testing.assert_close(pearson_samples(s, t, temperature=temperature, eps=0.0), temperature**2 * rows)
    assert pearson_classes(s, t, temperature=temperature, eps=0.0).item() == pytest.approx(temperature**2 * columns)
    assert pearson_classes(s, t, temperature=temperature, scale=False).item() == pytest.approx(columns, rel=1e-4)


@given(st.floats(0.05, 20), st.floats(-3, 3))
def test_the_relation_does_not_see_shift_and_scale_and_sees_the_sign(a, b):
    x, y = torch.softmax(logits(4, 6), 1), torch.softmax(logits(4, 6, seed=1), 1)
    torch.testing.assert_close(correlation(a * x + b, y), correlation(x, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(correlation(-a * x + b, y), -correlation(x, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(correlation(a * y + b, y), torch.ones(4).double(), rtol=1e-4, atol=1e-5)


def test_of_equal_logits_it_is_zero_and_without_a_gradient():
    s = logits(6, 5).requires_grad_()
    for loss in BOTH:
        value = loss(s, s.detach().clone(), eps=0.0)
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-14, rtol=0)
        assert torch.autograd.grad(value.sum(), s)[0].abs().max() < 1e-12


def test_two_classes_agree_or_disagree():
    """Of two classes the probabilities always lie on a line: rho is 1 or -1."""
    s, t = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double(), torch.tensor([[5.0, 0.0], [0.1, 0.0]]).double()
    assert pearson_samples(s, t, eps=0.0).tolist() == pytest.approx([0.0, 2.0])


def test_the_order_of_samples_and_classes_changes_nothing():
    s, t = logits(6, 5), logits(6, 5, seed=1)
    rows, columns = torch.randperm(6), torch.randperm(5)
    torch.testing.assert_close(pearson_classes(s[rows], t[rows]), pearson_classes(s, t))
    torch.testing.assert_close(pearson_classes(s[:, columns], t[:, columns]), pearson_classes(s, t))
    torch.testing.assert_close(pearson_samples(s[:, columns], t[:, columns]), pearson_samples(s, t))


@pytest.mark.parametrize("loss", BOTH)
def test_gradients_flow_into_both_arguments_and_are_right(loss):
    s, t = logits(4, 3).requires_grad_(), logits(4, 3, seed=1).requires_grad_()
    mask = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperature=1.7), (s, t))
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, mask=mask), (s, t))


def test_pixels_are_rows():
    s, t = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    flat_s, flat_t = (x.movedim(1, -1).reshape(-1, 5) for x in (s, t))
    torch.testing.assert_close(pearson_samples(s, t, dim=1).flatten(), pearson_samples(flat_s, flat_t))
    torch.testing.assert_close(pearson_classes(s, t, dim=1), pearson_classes(flat_s, flat_t))


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_what_is_masked_is_as_if_it_were_not_there(bad):
    s, t = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    for mask in (torch.tensor([True, False]), torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.6):
        counts = mask if mask.dim() > 1 else mask[:, None, None].expand(2, 3, 4)
        bad_s, bad_t = (torch.where(counts[:, None], x, bad).requires_grad_() for x in (s, t))
        clean_s, clean_t = (x.movedim(1, -1)[counts].clone().requires_grad_() for x in (s, t))
        value, expected = pearson_classes(bad_s, bad_t, dim=1, mask=mask), pearson_classes(clean_s, clean_t)
        torch.testing.assert_close(value, expected)
        got, wanted = torch.autograd.grad(value, bad_s)[0], torch.autograd.grad(expected, clean_s)[0]
        torch.testing.assert_close(got.movedim(1, -1)[counts], wanted)
        assert not got.movedim(1, -1)[~counts].any()
        values = pearson_samples(bad_s, bad_t, dim=1, mask=mask)
        torch.testing.assert_close(values[counts], pearson_samples(clean_s, clean_t))
        assert not values[~counts].any()


@pytest.mark.parametrize("loss", BOTH)
def test_nothing_that_counts_is_zero(loss):
    s = torch.full((3, 4), nan, requires_grad=True)
    value = loss(s, s.detach(), mask=torch.zeros(3, dtype=torch.bool))
    assert not value.any()
    assert not torch.autograd.grad(value.sum(), s)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_what_is_constant_has_no_correlation_and_no_gradient(dtype):
    """A last layer that begins at zero: the formula's gradient there is 1 / eps = 1e8."""
    s = torch.zeros(3, 7, dtype=dtype, requires_grad=True)
    t = logits(3, 7).to(dtype)
    assert pearson_samples(s, t).tolist() == [1.0] * 3
    for loss in BOTH:
        value = loss(s, t)
        assert torch.equal(value, torch.ones_like(value))
        assert not torch.autograd.grad(value.sum(), s)[0].any()
    one = torch.tensor([[3.0]], dtype=dtype)
    assert pearson_samples(one, one).tolist() == [1.0]  # one class
    assert pearson_classes(t[:1], t[:1]).item() == 1.0  # a batch of one


@given(
    st.integers(1, 5).flatmap(
        lambda c: st.lists(st.lists(st.floats(-30, 30, width=16), min_size=c, max_size=c), min_size=1, max_size=5)
    )
)
@settings(max_examples=80)
def test_between_zero_and_two_with_finite_gradients(rows):
    """In bf16; near a constant row the gradient is steep (up to 1 / eps) and may be too large for fp16."""
    s = torch.tensor(rows).bfloat16().requires_grad_()
    t = s.detach().roll(1, 0).flip(1)
    for loss in BOTH:
        value = loss(s, t, temperature=0.5, scale=False)
        assert value.dtype == torch.float32
        assert ((value >= -1e-5) & (value <= 2 + 1e-5)).all()
        assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3)
    for loss in BOTH:
        with pytest.raises(RecipeError, match=r"\[2, 3\], the teacher's \[2, 4\]"):
            loss(x, torch.zeros(2, 4))
        with pytest.raises(RecipeError, match="temperature 0: needed is a number above 0"):
            loss(x, x, temperature=0)
        with pytest.raises(RecipeError, match=r"mask of a loss has shape \[3\]"):
            loss(x, x, mask=torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("loss", BOTH)
def test_autocast_does_not_make_it_coarse(loss):
    s, t = logits(8, 5).float(), logits(8, 5, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(s, t)
    assert torch.equal(found, loss(s, t))
