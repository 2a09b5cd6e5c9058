import math

import pytest
import torch
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.losses.channelwise import cwd

inf, nan = math.inf, math.nan


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_the_released_formula_summed_and_divided_by_batch_and_channels(temperature):
    s, t = maps(3, 5, 4, 6), maps(3, 5, 4, 6, seed=1)
    p, log_q = (t.view(15, 24) / temperature).softmax(1), (s.view(15, 24) / temperature).log_softmax(1)
    published = F.kl_div(log_q, p, reduction="sum") * temperature**2 / (5 * 3)
    torch.testing.assert_close(cwd(s, t, temperature=temperature).mean(), published)
    plain = cwd(s, t, temperature=temperature, scale=False)
    torch.testing.assert_close(plain * temperature**2, cwd(s, t, temperature=temperature))


def test_one_channel_is_a_divergence_over_positions():
    s, t = maps(3, 1, 4, 6), maps(3, 1, 4, 6, seed=1)
    torch.testing.assert_close(cwd(s, t), kl(s.flatten(1), t.flatten(1), temperature=4))


def test_a_constant_of_a_channel_and_the_order_of_channels_change_nothing():
    s, t = maps(3, 5, 4, 4), maps(3, 5, 4, 4, seed=1)
    value = cwd(s, t)
    torch.testing.assert_close(cwd(s + maps(3, 5, 1, 1, seed=2) * 100, t - 7), value)
    torch.testing.assert_close(cwd(s[:, [4, 0, 2, 1, 3]], t[:, [4, 0, 2, 1, 3]]), value)
    assert not torch.allclose(cwd(s[:, [4, 0, 2, 1, 3]], t), value)  # it compares channel with channel
    assert cwd(s.half(), s.half()).tolist() == [0.0] * 3


def test_at_high_temperature_it_is_the_mean_square_of_centred_maps_halved():
    s, t = maps(2, 3, 4, 4), maps(2, 3, 4, 4, seed=1)
    gap = s.flatten(2) - t.flatten(2)
    limit = (gap - gap.mean(2, keepdim=True)).square().mean((1, 2)) / 2
    torch.testing.assert_close(cwd(s, t, temperature=1e4), limit, rtol=1e-3, atol=0)


def test_the_gradient_is_temperature_times_the_difference_of_the_activities():
    s, t = maps(2, 3, 2, 4).requires_grad_(), maps(2, 3, 2, 4, seed=1)
    (gradient,) = torch.autograd.grad(cwd(s, t, temperature=3.0).sum(), s)
    q, p = ((x / 3).flatten(2).softmax(2).view_as(x) for x in (s, t))
    torch.testing.assert_close(gradient, 3.0 * (q - p) / 3)  # T (q - p) over the three channels


def test_gradients_in_float64_with_and_without_a_mask():
    s, t = maps(2, 3, 2, 2).requires_grad_(), maps(2, 3, 2, 2, seed=1).requires_grad_()
    mask = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    assert torch.autograd.gradcheck(cwd, (s, t))
    assert torch.autograd.gradcheck(lambda a, b: cwd(a, b, mask=mask), (s, t))


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_masked_positions_are_as_if_they_were_not_there(bad):
    s, t = maps(3, 4, 5), maps(3, 4, 5, seed=1)  # four tokens of five channels
    mask = torch.tensor([[True, True, False, True], [True] * 4, [False] * 4])
    s, t = (x.masked_fill(~mask.unsqueeze(-1), bad).requires_grad_() for x in (s, t))
    values = cwd(s, t, mask=mask, weight=torch.tensor([2.0, 1.0, bad]))
    torch.testing.assert_close(values[:1], 2 * cwd(s[:1, [0, 1, 3]], t[:1, [0, 1, 3]]))
    torch.testing.assert_close(values[1:2], cwd(s[1:2], t[1:2]))
    assert values[2].item() == 0
    for gradient in torch.autograd.grad(values.sum(), (s, t)):
        assert gradient.isfinite().all()
        assert gradient[~mask].eq(0).all()
        assert gradient[mask].ne(0).all()
    sample = cwd(s, t, mask=torch.tensor([False, True, False]))
    assert (sample == 0).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_never_negative_and_never_nan(dtype):
    s, t = ((maps(4, 3, 5, 5, seed=i) * 300).to(dtype).requires_grad_() for i in range(2))
    values = cwd(s, t, temperature=0.05)
    assert (values >= 0).all()
    assert values.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(values.sum(), (s, t)))


def test_a_larger_map_is_pooled_and_one_position_says_nothing():
    s, t = maps(2, 3, 8, 8), maps(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(cwd(s, t), cwd(F.avg_pool2d(s, 2), t))
    assert cwd(s, maps(2, 3, 1, 1)).tolist() == [0.0, 0.0]


def test_mistakes_are_answered_in_sentences():
    with pytest.raises(RecipeError, match="has 3 of them, the teacher's 5"):
        cwd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 5, 4, 4))
    with pytest.raises(RecipeError, match="channel-wise distillation compares positions"):
        cwd(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(RecipeError, match="temperature 0: needed is a number above 0"):
        cwd(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), temperature=0)
    assert losses.find("cwd") is cwd
