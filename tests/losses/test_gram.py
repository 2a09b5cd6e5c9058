import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses.gram import ickd, nst

inf, nan = math.inf, math.nan
KERNELS = ["linear", "polynomial", "gaussian"]


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def units(x: torch.Tensor) -> list[list[float]]:
    return F.normalize(x.flatten(1), dim=1).tolist()


def dot(a, b):
    return sum(u * v for u, v in zip(a, b))


def discrepancy(ours, theirs, k):
    def mean(a, b):
        return sum(k(u, v) for u in a for v in b) / (len(a) * len(b))

    return mean(ours, ours) + mean(theirs, theirs) - 2 * mean(ours, theirs)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=30)
def test_nst_is_the_discrepancy_channel_by_channel(ours, theirs, seed):
    s, t = features(2, ours, 2, 3, seed=seed), features(2, theirs, 2, 3, seed=seed + 1)
    for b in range(2):
        a, c = units(s[b]), units(t[b])
        expected = discrepancy(a, c, dot)
        assert nst(s, t, kernel="linear")[b].item() == pytest.approx(expected, abs=1e-12)
        expected = discrepancy(a, c, lambda u, v: (dot(u, v) + 0.5) ** 3)
        assert nst(s, t, degree=3, offset=0.5)[b].item() == pytest.approx(expected, abs=1e-12)
        expected = discrepancy(a, c, lambda u, v: dot(u, v) ** 2)
        assert nst(s, t)[b].item() == pytest.approx(expected, abs=1e-12)
        expected = discrepancy(a, c, lambda u, v: math.exp(-(math.dist(u, v) ** 2) / (2 * 0.7**2)))
        assert nst(s, t, kernel="gaussian", bandwidth=0.7)[b].item() == pytest.approx(expected, abs=1e-9)
        square = sum(math.dist(u, v) ** 2 for u in a for v in c) / (len(a) * len(c))
        expected = discrepancy(a, c, lambda u, v, square=square: math.exp(-(math.dist(u, v) ** 2) / (2 * square)))
        assert nst(s, t, kernel="gaussian")[b].item() == pytest.approx(expected, abs=1e-9)


def test_a_polynomial_of_degree_one_is_linear():
    s, t = features(3, 4, 3, 3), features(3, 6, 3, 3, seed=1)
    torch.testing.assert_close(nst(s, t, degree=1), nst(s, t, kernel="linear"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_order_size_and_repetition_of_channels_change_nothing(kernel):
    s, t = features(3, 4, 3, 3), features(3, 6, 3, 3, seed=1)
    value = nst(s, t, kernel=kernel)
    assert (value > 0).all()
    torch.testing.assert_close(nst(s[:, [2, 0, 3, 1]], t, kernel=kernel), value)
    torch.testing.assert_close(nst(s * torch.tensor([1.0, 9.0, 1e-3, 2.0])[:, None, None], t, kernel=kernel), value)
    torch.testing.assert_close(nst(torch.cat([s, s], 1), t, kernel=kernel), value)
    torch.testing.assert_close(nst(s, s[:, [1, 0, 2, 3]], kernel=kernel), torch.zeros(3).double(), atol=1e-12, rtol=0)
    tokens = (s.flatten(2).mT, t.flatten(2).mT)
    torch.testing.assert_close(nst(*tokens, kernel=kernel), value)


@pytest.mark.parametrize("kernel", KERNELS)
def test_larger_maps_are_pooled_to_the_smaller(kernel):
    s, t = features(2, 3, 8, 8), features(2, 5, 4, 4, seed=1)
    torch.testing.assert_close(nst(s, t, kernel=kernel), nst(F.avg_pool2d(s, 2), t, kernel=kernel))


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_nst_in_float64(kernel):
    s, t = features(2, 3, 2, 2).requires_grad_(), features(2, 2, 2, 2, seed=1).requires_grad_()
    mask = torch.tensor([[[True, False], [True, True]], [[True] * 2] * 2])
    assert torch.autograd.gradcheck(lambda a, b: nst(a, b, kernel=kernel, bandwidth=0.6), (s, t))
    assert torch.autograd.gradcheck(lambda a, b: nst(a, b, kernel=kernel, bandwidth=0.6, mask=mask), (s, t))


@given(st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=30)
def test_ickd_is_the_correlation_of_channels_pair_by_pair(channels, normalise, seed):
    s, t = features(2, channels, 2, 3, seed=seed), features(2, channels, 4, 4, seed=seed + 1)
    for b in range(2):
        grams = []
        for x in (s[b], t[b]):
            rows = x.flatten(1).tolist()
            gram = [[dot(u, v) / (1 if normalise else len(u)) for v in rows] for u in rows]
            length = [math.sqrt(dot(row, row)) if normalise else 1.0 for row in gram]
            grams.append([[v / n for v in row] for row, n in zip(gram, length)])
        total = sum((grams[0][c][d] - grams[1][c][d]) ** 2 for c in range(channels) for d in range(channels))
        expected = total / channels ** (1 if normalise else 2)
        assert ickd(s, t, normalise=normalise)[b].item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_where_things_are_does_not_matter_to_ickd_but_which_channel_they_are_in_does():
    s, t = features(3, 4, 3, 3), features(3, 4, 3, 3, seed=1)
    value = ickd(s, t)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ickd(s.flatten(2)[:, :, order].view_as(s), t), value)
    torch.testing.assert_close(ickd(-7 * s, 1e-3 * t), value)
    rotation = torch.linalg.qr(features(9, 9, seed=2)).Q
    torch.testing.assert_close(ickd((s.flatten(2) @ rotation).view_as(s), t), value)
    torch.testing.assert_close(ickd(s[:, [1, 0, 3, 2]], t[:, [1, 0, 3, 2]]), value)
    assert not torch.allclose(ickd(s[:, [1, 0, 3, 2]], t), value)
    assert ickd(s.half(), s.half()).tolist() == [0.0] * 3


def test_a_vector_has_one_position_and_one_channel_nothing_to_correlate():
    s, t = features(3, 4), features(3, 4, seed=1)
    torch.testing.assert_close(ickd(s, t), ickd(s[:, :, None, None], t[:, :, None, None]))
    assert ickd(features(3, 1, 4, 4), features(3, 1, 4, 4, seed=1)).tolist() == [0.0] * 3


@pytest.mark.parametrize("normalise", [True, False])
def test_gradients_of_ickd_in_float64(normalise):
    s, t = features(2, 3, 2, 2).requires_grad_(), features(2, 3, 2, 2, seed=1).requires_grad_()
    weight, mask = features(2, seed=2).requires_grad_(), torch.tensor([[[True, False], [True, True]], [[True] * 2] * 2])
    assert torch.autograd.gradcheck(lambda a, b: ickd(a, b, normalise=normalise), (s, t))
    assert torch.autograd.gradcheck(
        lambda a, b, w: ickd(a, b, normalise=normalise, mask=mask, weight=w), (s, t, weight)
    )


@pytest.mark.parametrize("loss", [nst, ickd, lambda s, t, **o: nst(s, t, kernel="gaussian", **o)])
@pytest.mark.parametrize("bad", [nan, inf])
def test_masked_positions_are_as_if_they_were_not_there(loss, bad):
    s, t = features(3, 5, 4), features(3, 5, 4, seed=1)  # five tokens of four channels
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5, [False] * 5])
    s, t = (x.masked_fill(~mask.unsqueeze(-1), bad).requires_grad_() for x in (s, t))
    values = loss(s, t, mask=mask, weight=torch.tensor([2.0, 1.0, bad]))
    torch.testing.assert_close(values[:1], 2 * loss(s[:1, :3], t[:1, :3]))
    torch.testing.assert_close(values[1:2], loss(s[1:2], t[1:2]))
    assert values[2].item() == 0
    for gradient in torch.autograd.grad(values.sum(), (s, t)):
        assert gradient.isfinite().all()
        assert gradient[~mask].eq(0).all()


@pytest.mark.parametrize("loss", [nst, ickd])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_autocast_and_sleeping_channels(loss, dtype):
    s, t = (features(2, 3, 4, 4) * 10000).to(dtype), features(2, 3, 4, 4, seed=1).to(dtype)
    s[0, 1] = 0
    s = s.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = loss(s, t)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), loss(s.double(), t.double()), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(values.sum(), s)[0].isfinite().all()


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(RecipeError, match="kernel 'cubic': there is linear, polynomial and gaussian"):
        nst(x, x, kernel="cubic")
    with pytest.raises(RecipeError, match="degree=0"):
        nst(x, x, degree=0)
    with pytest.raises(RecipeError, match="neuron selectivity transfer compares positions"):
        nst(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(
        RecipeError, match=r"\[2, 3, 4, 4\], the teacher's \[2, 5, 4, 4\]; needed are equal numbers of channels"
    ):
        ickd(x, torch.zeros(2, 5, 4, 4))
    assert losses.find("nst") is nst
    assert losses.find("ickd") is ickd
