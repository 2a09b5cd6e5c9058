import math

import pytest
import torch
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses import mse
from limbeck.losses.variational import variational_information

inf, nan = math.inf, math.nan


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


VARIANCE = torch.tensor([0.5, 1.0, 3.0, 20.0], dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 4), (3, 6, 4), (3, 4, 2, 5), (3, 4, 2, 2, 2)])
def test_it_is_the_gaussian_likelihood_of_torch_whatever_the_kind_of_signal(shape):
    s, t = features(*shape), features(*shape, seed=1)
    at = 1 if len(shape) > 3 else len(shape) - 1
    wide = VARIANCE.view(-1, *[1] * (len(shape) - 1 - at)).expand(shape)
    expected = F.gaussian_nll_loss(s, t, wide, reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(variational_information(s, t, variance=VARIANCE), expected)


def test_with_variance_one_it_is_half_the_mean_square():
    s, t = features(3, 4, 2, 2), features(3, 4, 2, 2, seed=1)
    torch.testing.assert_close(variational_information(s, t, variance=torch.ones(4)), mse(s, t) / 2)


def test_the_best_variance_of_a_channel_is_its_mean_squared_error():
    s, t = features(6, 4, 3, 3), features(6, 4, 3, 3, seed=1)
    best = (s - t).square().mean((0, 2, 3)).requires_grad_()
    value = variational_information(s, t, variance=best).mean()
    (gradient,) = torch.autograd.grad(value, best, create_graph=True)
    torch.testing.assert_close(gradient, torch.zeros(4).double())
    for factor in (0.5, 0.99, 1.01, 2.0):
        assert variational_information(s, t, variance=best * factor).mean() > value


def test_a_mean_moved_by_the_same_constant_changes_nothing_and_certainty_can_make_it_negative():
    s, t = features(3, 6, 4), features(3, 6, 4, seed=1)
    value = variational_information(s, t, variance=VARIANCE)
    torch.testing.assert_close(variational_information(s + 5, t + 5, variance=VARIANCE), value)
    assert (variational_information(t, t, variance=VARIANCE / 1e4) < 0).all()


def test_gradients_in_float64():
    s, t = features(3, 5, 4).requires_grad_(), features(3, 5, 4, seed=1).requires_grad_()
    variance, weight = VARIANCE.clone().requires_grad_(), features(3, seed=2).requires_grad_()
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5, [False] * 5])

    def loss(a, b, v, w):
        return variational_information(a, b, variance=v, mask=mask, weight=w)

    assert torch.autograd.gradcheck(loss, (s, t, variance, weight))


@pytest.mark.parametrize("bad", [nan, inf])
def test_masked_positions_are_as_if_they_were_not_there(bad):
    s, t = features(2, 4, 2, 2), features(2, 4, 2, 2, seed=1)
    mask = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    s, t = (x.masked_fill(~mask[:, None], bad).requires_grad_() for x in (s, t))
    variance = VARIANCE.clone().requires_grad_()
    values = variational_information(s, t, variance=variance, mask=mask)
    kept = [x[:1].flatten(2)[:, :, [0, 2, 3]].unsqueeze(3) for x in (s, t)]
    torch.testing.assert_close(values[:1], variational_information(*kept, variance=variance))
    assert values[1].item() == 0
    gradients = torch.autograd.grad(values.sum(), (s, t, variance))
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[0].movedim(1, -1)[~mask].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    s, t = (features(3, 4, seed=i).to(dtype) * 1000 for i in range(2))
    value = variational_information(s, t, variance=torch.full((4,), 1e-5))
    assert value.dtype == torch.float32
    assert value.isfinite().all()


def test_mistakes_are_answered_in_sentences():
    with pytest.raises(RecipeError, match=r"variance of shape \[3\]; needed is one number per channel, \[4\]"):
        variational_information(torch.zeros(2, 4), torch.zeros(2, 4), variance=torch.ones(3))
    with pytest.raises(RecipeError, match="Give the term a bridge"):
        variational_information(torch.zeros(2, 3), torch.zeros(2, 4), variance=torch.ones(3))
    assert losses.find("variational-information") is variational_information
