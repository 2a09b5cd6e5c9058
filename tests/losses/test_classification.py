import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses import binary_cross_entropy, cross_entropy, kl, soft_cross_entropy

inf, nan = math.inf, math.nan


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_hard_labels_agree_with_torch(batch, classes, smoothing, seed):
    s = logits(batch, classes, seed=seed)
    y = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed))
    y[::3] = -100
    expected = F.cross_entropy(s, y, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(cross_entropy(s, y, label_smoothing=smoothing), expected)


def test_smoothing_is_soft_cross_entropy_against_the_smoothed_target():
    s, y = logits(4, 5), torch.tensor([0, 4, 2, 2])
    smoothed = 0.8 * F.one_hot(y, 5) + 0.2 / 5
    torch.testing.assert_close(cross_entropy(s, y, label_smoothing=0.2), soft_cross_entropy(s, smoothed))


@pytest.mark.parametrize("dim", [1, -1])
def test_pixels_and_tokens_get_a_value_each(dim):
    s = logits(2, 5, 3, 4)
    y = torch.randint(5, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    values = cross_entropy(s if dim == 1 else s.movedim(1, -1), y, dim=dim)
    torch.testing.assert_close(values, F.cross_entropy(s, y, reduction="none"))


def test_another_label_can_be_ignored_or_none():
    s, y = logits(3, 4), torch.tensor([0, 3, 0])
    assert (cross_entropy(s, y, ignore_index=0) == 0).tolist() == [True, False, True]
    assert (cross_entropy(s, y, ignore_index=None) > 0).all()
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(s, torch.tensor([0, 4, 0]))


def test_ignored_and_masked_entries_have_exactly_no_gradient_even_from_nan():
    s = logits(2, 3, 4)
    y = torch.tensor([[0, -100, 999], [1, 2, 3]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    counts = torch.tensor([[True, False, False], [True, False, True]])
    broken = s.masked_fill(~counts.unsqueeze(-1), nan).requires_grad_()
    values = cross_entropy(broken, y, mask=mask, label_smoothing=0.1)
    safe = torch.where(counts, y, 0)
    assert torch.equal(values, cross_entropy(s, safe, label_smoothing=0.1) * counts)
    (gradient,) = torch.autograd.grad(values.sum(), broken)
    assert gradient[~counts].eq(0).all()
    assert gradient[counts].ne(0).all()
    per_sample = cross_entropy(s, safe, mask=torch.tensor([False, True]), weight=torch.tensor([nan, 2.0]))
    assert torch.equal(per_sample, torch.stack([torch.zeros(3).double(), 2 * cross_entropy(s, safe)[1]]))


def test_gradients_in_float64():
    s, y = logits(3, 4).requires_grad_(), torch.tensor([0, 3, 1])
    p = logits(3, 4, seed=1).softmax(-1).requires_grad_()
    several = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, y, label_smoothing=0.1), (s,))
    assert torch.autograd.gradcheck(soft_cross_entropy, (s, p))
    assert torch.autograd.gradcheck(binary_cross_entropy, (s, several))


def test_soft_cross_entropy_is_kl_plus_entropy():
    s, t = logits(4, 6), logits(4, 6, seed=1)
    p = t.softmax(-1)
    torch.testing.assert_close(soft_cross_entropy(s, p), kl(s, t) - (p * p.log()).sum(-1))
    onehot = F.one_hot(torch.tensor([0, 5, 2, 2]), 6)
    torch.testing.assert_close(soft_cross_entropy(s, onehot), cross_entropy(s, torch.tensor([0, 5, 2, 2])))
    maps = logits(2, 5, 3, 3)
    torch.testing.assert_close(
        soft_cross_entropy(maps, maps.softmax(1), dim=1),
        torch.distributions.Categorical(logits=maps.movedim(1, -1)).entropy(),
    )


def test_soft_cross_entropy_where_both_rule_a_class_out():
    s = torch.tensor([[0.0, -inf, 0.0]], requires_grad=True)
    value = soft_cross_entropy(s, torch.tensor([[0.5, 0.0, 0.5]]))
    assert value.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(value, s)[0].tolist() == [[0.0, 0.0, 0.0]]
    assert soft_cross_entropy(s, torch.tensor([[0.0, 1.0, 0.0]])).item() == inf


def test_binary_agrees_with_torch_and_is_a_mean_over_classes():
    s = logits(4, 6) * 10
    y = (logits(4, 6, seed=1) > 0).long()
    expected = F.binary_cross_entropy_with_logits(s, y.double(), reduction="none").mean(-1)
    torch.testing.assert_close(binary_cross_entropy(s, y), expected)
    torch.testing.assert_close(binary_cross_entropy(s.T, y.T, dim=0), expected)
    assert binary_cross_entropy(torch.zeros(1, 3), torch.tensor([[0, 1, 1]])).item() == pytest.approx(math.log(2))


def test_binary_at_infinite_logits():
    s = torch.tensor([[-inf, inf, 0.0]], requires_grad=True)
    value = binary_cross_entropy(s, torch.tensor([[0.0, 1.0, 1.0]]))
    assert value.item() == pytest.approx(math.log(2) / 3)
    (gradient,) = torch.autograd.grad(value, s)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0, -0.5 / 3]]))
    assert binary_cross_entropy(s, torch.tensor([[1.0, 1.0, 1.0]])).item() == inf


@pytest.mark.parametrize("loss", [soft_cross_entropy, binary_cross_entropy])
def test_masked_nan_is_zero_with_zero_gradient(loss):
    s = torch.full((2, 3), nan).requires_grad_()
    p = torch.full((2, 3), inf).requires_grad_()
    value = loss(s, p, mask=torch.tensor([False, False]), weight=torch.tensor([nan, 1.0]))
    assert value.tolist() == [0.0, 0.0]
    for gradient in torch.autograd.grad(value.sum(), (s, p)):
        assert gradient.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    s = (logits(3, 50) * 20).to(dtype)
    y = torch.tensor([0, 49, 7])
    for value, same in (
        (cross_entropy(s, y), cross_entropy(s.float(), y)),
        (soft_cross_entropy(s, s.softmax(-1)), soft_cross_entropy(s.float(), s.softmax(-1).float())),
        (binary_cross_entropy(s, s > 0), binary_cross_entropy(s.float(), (s > 0).float())),
    ):
        assert value.dtype == torch.float32
        assert torch.equal(value, same)


def test_mistakes_are_answered_in_sentences():
    with pytest.raises(RecipeError, match=r"labels have shape \[2, 4\].*needed are labels of shape \[2, 3\]"):
        cross_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(RecipeError, match=r"label_smoothing=1.5: needed is a number from 0 to 1"):
        cross_entropy(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), label_smoothing=1.5)
    with pytest.raises(RecipeError, match="compares equal shapes"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(3))
