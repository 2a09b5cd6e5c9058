import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses.alignment import alignment, cka, hsic, minibatch_alignment

nan = math.nan
KERNELS = ["linear", "rbf"]


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(st.integers(2, 7), st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=40)
def test_linear_alignment_is_the_feature_formula(n, d, e, seed):
    x, y = features(n, d, seed=seed), features(n, e, seed=seed + 1)
    a, b = x - x.mean(0), y - y.mean(0)
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    torch.testing.assert_close(alignment(x, y), expected)
    assert -1e-12 <= alignment(x, y).item() <= 1 + 1e-12
    torch.testing.assert_close(cka(x, y), 1 - expected)


def test_the_biased_hsic_is_the_trace_with_the_centring_matrix():
    k, other = (features(6, 6, seed=i) for i in range(2))
    k, other = k @ k.T, other @ other.T
    h = torch.eye(6).double() - 1 / 6
    torch.testing.assert_close(hsic(k, other), (k @ h @ other @ h).trace() / 25)


def test_the_unbiased_hsic_is_the_mean_over_distinct_samples():
    """Gretton et al. 2005: a sum over pairs, triples and quadruples of different samples, here written out."""
    n = 6
    k, other = (features(n, 3, seed=i) for i in range(2))
    k, other = (k @ k.T).tolist(), (other @ other.T).tolist()
    pairs = [k[i][j] * other[i][j] for i, j in itertools.permutations(range(n), 2)]
    triples = [k[i][j] * other[i][q] for i, j, q in itertools.permutations(range(n), 3)]
    fours = [k[i][j] * other[q][r] for i, j, q, r in itertools.permutations(range(n), 4)]
    expected = sum(pairs) / len(pairs) - 2 * sum(triples) / len(triples) + sum(fours) / len(fours)
    found = hsic(torch.tensor(k), torch.tensor(other), unbiased=True)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_rotations_shifts_and_scales_change_nothing_and_other_maps_do(kernel, unbiased):
    x, y = features(12, 5), features(12, 3, seed=1)
    rotation = torch.linalg.qr(features(5, 5, seed=2)).Q
    value = alignment(x, y, kernel=kernel, unbiased=unbiased)
    moved = -40 * x @ rotation + 3
    torch.testing.assert_close(alignment(moved, y, kernel=kernel, unbiased=unbiased), value)
    torch.testing.assert_close(alignment(y, x, kernel=kernel, unbiased=unbiased), value)
    torch.testing.assert_close(
        cka(x, moved, kernel=kernel, unbiased=unbiased), torch.zeros(()).double(), atol=1e-12, rtol=0
    )
    order = [3, 1, 2, 0, *range(4, 12)]
    torch.testing.assert_close(alignment(x[order], y[order], kernel=kernel, unbiased=unbiased), value)
    stretched = x * torch.tensor([1.0, 5.0, 0.1, 1.0, 3.0])
    assert alignment(x, stretched, kernel=kernel, unbiased=unbiased) < 0.999


def test_many_features_of_few_samples_look_alike_unless_it_is_unbiased():
    drawn = [(features(8, 4000, seed=i), features(8, 4000, seed=1000 + i)) for i in range(6)]
    assert min(alignment(x, y) for x, y in drawn) > 0.95
    assert abs(sum(alignment(x, y, unbiased=True) for x, y in drawn) / 6) < 0.1


def test_minibatches_are_summed_before_they_are_divided():
    batches = [(features(6, 4, seed=i), features(6, 3, seed=50 + i) + features(6, 4, seed=i)[:, :3]) for i in range(5)]
    sums = torch.zeros(3).double()
    for x, y in batches:
        a, b = ((z - z.mean(0)) / (z - z.mean(0)).abs().max() for z in (x, y))
        k, other = a @ a.T, b @ b.T
        sums += torch.stack(
            [hsic(k, other, unbiased=True), hsic(k, k, unbiased=True), hsic(other, other, unbiased=True)]
        )
    scaled = sums[0] / (sums[1] * sums[2]).sqrt()
    torch.testing.assert_close(minibatch_alignment(batches), scaled)
    one = minibatch_alignment(batches[:1])
    torch.testing.assert_close(one, alignment(*batches[0], unbiased=True))
    with pytest.raises(RecipeError, match="given no batches"):
        minibatch_alignment([])


def test_the_rbf_kernel_is_that_of_distances_over_the_median():
    x, y = features(7, 3), features(7, 2, seed=1)

    def kernel(z):
        d = torch.cdist(z, z).square()
        return torch.exp(-d / (2 * 0.8**2 * d[~torch.eye(7, dtype=torch.bool)].median()))

    k, other = kernel(x), kernel(y)
    expected = hsic(k, other) / (hsic(k, k) * hsic(other, other)).sqrt()
    torch.testing.assert_close(alignment(x, y, kernel="rbf", bandwidth=0.8), expected)


@pytest.mark.parametrize("unbiased", [False, True])
def test_gradients_in_float64(unbiased):
    x, y = features(6, 3).requires_grad_(), features(6, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cka(a, b, unbiased=unbiased), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: cka(a, b, kernel="rbf", unbiased=unbiased), (x, y))


@pytest.mark.parametrize("kernel", KERNELS)
def test_maps_and_tokens_are_rows_and_masked_samples_are_not_there(kernel):
    s, t = features(8, 3, 2, 2), features(8, 5, 4, seed=1)
    torch.testing.assert_close(cka(s, t, kernel=kernel), cka(s.flatten(1), t.flatten(1), kernel=kernel))
    mask = torch.tensor([True] * 6 + [False] * 2)
    s = s.index_fill(0, torch.tensor([6, 7]), nan).requires_grad_()
    value = cka(s, t, kernel=kernel, mask=mask)
    torch.testing.assert_close(value, cka(s[:6], t[:6], kernel=kernel))
    (gradient,) = torch.autograd.grad(value, s)
    assert gradient[6:].eq(0).all()
    assert gradient[:6].isfinite().all()


@pytest.mark.parametrize(("n", "unbiased"), [(1, False), (3, True), (0, False)])
def test_too_few_samples_say_nothing_and_equal_ones_align_with_nothing(n, unbiased):
    s = features(4, 3).requires_grad_()
    mask = torch.arange(4) < n
    value = cka(s, features(4, 3, seed=1), unbiased=unbiased, mask=mask)
    assert value.item() == 0
    assert torch.autograd.grad(value, s)[0].eq(0).all()
    same = torch.ones(5, 3, requires_grad=True)
    for kernel in KERNELS:
        value = cka(same, torch.randn(5, 3), kernel=kernel)
        assert value.item() == 1
        assert torch.autograd.grad(value, same)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision_and_autocast_are_computed_in_single(dtype, kernel):
    s, t = (features(8, 16) * 20000).to(dtype), features(8, 16, seed=1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = alignment(s, t, kernel=kernel)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), alignment(s.double(), t.double(), kernel=kernel), rtol=1e-4, atol=1e-5)


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(5, 2)
    with pytest.raises(RecipeError, match="5 of the student, 4 of the teacher"):
        cka(x, torch.zeros(4, 2))
    with pytest.raises(RecipeError, match="kernel 'cubic': there is linear and rbf"):
        cka(x, x, kernel="cubic")
    with pytest.raises(RecipeError, match="bandwidth=0: needed is a number above 0"):
        cka(x, x, kernel="rbf", bandwidth=0)
    with pytest.raises(RecipeError, match="of 3 samples: needed are at least 4"):
        hsic(torch.zeros(3, 3), torch.zeros(3, 3), unbiased=True)
    assert losses.find("cka") is cka
