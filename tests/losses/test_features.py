import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses import cosine, mse, smooth_l1

ALL = [mse, smooth_l1, cosine]
inf, nan = math.inf, math.nan


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple), st.integers(0, 2**31))
@settings(deadline=None, max_examples=50)
def test_without_a_mask_it_is_the_mean_over_everything_of_a_sample(shape, seed):
    s, t = features(*shape, seed=seed), features(*shape, seed=seed + 1)
    rest = tuple(range(1, len(shape)))
    torch.testing.assert_close(mse(s, t), ((s - t) ** 2).mean(rest))
    torch.testing.assert_close(smooth_l1(s, t, beta=0.7), F.smooth_l1_loss(s, t, beta=0.7, reduction="none").mean(rest))
    expected = (1 - F.cosine_similarity(s, t, dim=-1)).reshape(shape[0], -1).mean(1)
    torch.testing.assert_close(cosine(s, t), expected)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dim", [1, -1])
def test_a_mask_averages_over_the_valid_positions_inside_each_sample(loss, dim):
    s, t = features(3, 5, 2, 4), features(3, 5, 2, 4, seed=1)
    mask = torch.zeros(3, 2, 4, dtype=torch.bool)
    mask[0, 0, 1] = mask[0, 1, 3] = mask[1, 1, 1] = True  # two positions, one, none
    arranged = (s, t) if dim == 1 else (s.movedim(1, -1), t.movedim(1, -1))
    first = (loss(s[:1, :, 0, 1], t[:1, :, 0, 1]) + loss(s[:1, :, 1, 3], t[:1, :, 1, 3])) / 2
    second = loss(s[1:2, :, 1, 1], t[1:2, :, 1, 1])
    torch.testing.assert_close(loss(*arranged, dim=dim, mask=mask), torch.cat([first, second, torch.zeros(1).double()]))


@pytest.mark.parametrize("loss", ALL)
def test_a_full_mask_is_no_mask_and_padding_changes_nothing(loss):
    s, t = features(3, 4, 5), features(3, 4, 5, seed=1)
    torch.testing.assert_close(loss(s, t, mask=torch.ones(3, 4, dtype=torch.bool)), loss(s, t))
    padded = (torch.cat([x, torch.full((3, 2, 5), nan).double()], 1) for x in (s, t))
    mask = torch.tensor([[True] * 4 + [False] * 2] * 3)
    torch.testing.assert_close(loss(*padded, mask=mask), loss(s, t))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("bad", [nan, inf])
def test_masked_entries_have_exactly_no_gradient(loss, bad):
    s, t = features(3, 4, 5), features(3, 4, 5, seed=1)
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    s, t = (x.masked_fill(~mask.unsqueeze(-1), bad).requires_grad_() for x in (s, t))
    values = loss(s, t, mask=mask, weight=torch.tensor([1.0, bad, 2.0]))
    assert values[1].item() == 0
    assert values.isfinite().all()
    for gradient in torch.autograd.grad(values.sum(), (s, t)):
        assert gradient[~mask].eq(0).all()
        assert gradient[mask].ne(0).all()
    per_sample = loss(s, t, mask=torch.tensor([False, False, True]))
    assert (per_sample == 0).tolist() == [True, True, False]


@pytest.mark.parametrize("loss", ALL)
def test_gradients_in_float64(loss):
    s, t = features(3, 4, 5).requires_grad_(), features(3, 4, 5, seed=1).requires_grad_()
    mask = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    weight = features(3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(loss, (s, t))
    assert torch.autograd.gradcheck(lambda a, b, w: loss(a, b, mask=mask, weight=w), (s, t, weight))
    assert torch.autograd.gradgradcheck(loss, (s, t))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_equal_features_are_exactly_zero_apart(loss, dtype):
    x = (features(64, 33) * 100).to(dtype)
    value = loss(x, x.clone())
    assert value.tolist() == [0.0] * 64
    assert value.dtype == torch.float32


def test_cosine_knows_directions_only():
    s = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1e-30, 0.0]])
    t = torch.tensor([[0.0, 5.0], [-3.0, 0.0], [7.0, 0.0], [1e30, 1e30]])
    torch.testing.assert_close(cosine(s, t), torch.tensor([1.0, 2.0, 0.0, 1 - math.sqrt(0.5)]))
    x = torch.tensor([[60000.0, 60000.0]], dtype=torch.float16)  # its square is no fp16 number
    assert cosine(x, x / 2).item() == 0


def test_a_zero_vector_has_no_direction_and_no_gradient():
    s = torch.zeros(2, 3, requires_grad=True)
    t = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]], requires_grad=True)
    values = cosine(s, t)
    assert values.tolist() == [1.0, 1.0]
    for gradient in torch.autograd.grad(values.sum(), (s, t)):
        assert gradient.eq(0).all()


def test_smooth_l1_is_a_parabola_inside_and_a_line_outside():
    zero = torch.zeros(4, 1)
    s = torch.tensor([[0.0], [1.0], [2.0], [-5.0]])
    assert smooth_l1(s, zero, beta=2.0).tolist() == [0.0, 0.25, 1.0, 4.0]
    assert smooth_l1(s, zero, beta=0.0).tolist() == [0.0, 1.0, 2.0, 5.0]


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3, 4)
    with pytest.raises(RecipeError, match="Give the term a bridge"):
        mse(x, torch.zeros(2, 3, 5))
    with pytest.raises(RecipeError, match=r"the mask of a loss has shape \[2, 4\]; needed is \[2, 3\]"):
        mse(x, x, mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(RecipeError, match=r"needed is \[batch, width\]"):
        cosine(torch.zeros(3), torch.zeros(3))
    with pytest.raises(RecipeError, match="beta=-1"):
        smooth_l1(x, x, beta=-1)
