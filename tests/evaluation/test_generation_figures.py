"""Distances between sets of samples: closed forms, invariances, agreement with slow definitions, and degenerate sets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from torch import nn

from limbeck.errors import RecipeError
from limbeck.evaluation import generation as g


def two(n=60, m=50, dims=4, seed=0):
    r = torch.Generator().manual_seed(seed)
    return torch.randn(n, dims, generator=r), 0.7 * torch.randn(m, dims, generator=r) + 0.3


def whitened(x, mean, spread):
    """Samples whose mean and covariance are exactly these (diagonal) ones."""
    x = x.double() - x.double().mean(0)
    cov = x.T @ x / (len(x) - 1)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(cov), x.T, upper=False).T * torch.tensor(
        spread
    ) + torch.tensor(mean)


def test_frechet_of_exact_moments_is_the_closed_form():
    a, b = two(dims=3)
    one = whitened(a, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5])
    two_ = whitened(b, [1.0, 1.0, 0.0], [2.0, 2.0, 1.5])
    # for commuting covariances: |difference of means|^2 + |difference of standard deviations|^2
    assert g.frechet(one, two_) == pytest.approx(1 + 0 + 4 + 1 + 0 + 1, rel=1e-9)
    assert g.frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_frechet_is_that_of_the_matrix_root():
    a, b = two(dims=5)
    a = a @ torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    one, two_ = np.cov(a.double().numpy().T), np.cov(b.double().numpy().T)
    root = linalg.sqrtm(one @ two_).real
    expected = ((a.double().mean(0) - b.double().mean(0)) ** 2).sum() + np.trace(one + two_ - 2 * root)
    assert g.frechet(a, b) == pytest.approx(float(expected), rel=1e-8)
    assert g.frechet(a, b) == pytest.approx(g.frechet(b, a), rel=1e-9)


def test_frechet_of_features_that_do_not_vary():
    a, b = torch.zeros(10, 3), torch.ones(12, 3)
    assert g.frechet(a, b) == pytest.approx(3)


def slow_mmd(a, b, kernel):
    k = lambda x, y: torch.tensor([[kernel(p, q) for q in y] for p in x], dtype=torch.float64)  # noqa: E731
    aa, bb, ab = k(a, a), k(b, b), k(a, b)
    n, m = len(a), len(b)
    off = lambda x: sum(x[i, j] for i in range(len(x)) for j in range(len(x)) if i != j)  # noqa: E731
    return float(off(aa) / (n * (n - 1)) + off(bb) / (m * (m - 1)) - 2 * ab.mean())


def test_kernel_distances_are_their_definitions():
    a, b = (x.double() for x in two(9, 7, 3))
    assert g.kernel_distance(a, b) == pytest.approx(slow_mmd(a, b, lambda p, q: float(p @ q / 3 + 1) ** 3), rel=1e-9)
    middle = torch.pdist(b).square().sort().values
    median = float(torch.cat([middle, middle]).median())

    def gauss(p, q):
        d = float((p - q).square().sum())
        return sum(math.exp(-d / (2 * f**2 * median)) for f in (0.5, 1, 2)) / 3

    assert g.mmd(a, b) == pytest.approx(slow_mmd(a, b, gauss), rel=1e-9)


def test_unbiased_distances_of_one_distribution_are_about_zero_and_of_two_are_not():
    r = torch.Generator().manual_seed(0)
    found = [g.mmd(*torch.randn(2, 40, 2, generator=r)) for _ in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(200)
    assert min(found) < 0
    assert g.mmd(torch.randn(200, 2, generator=r), torch.randn(200, 2, generator=r) + 1) > 0.1
    assert math.isnan(g.mmd(torch.zeros(1, 2), torch.zeros(3, 2)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9))
def test_sliced_wasserstein_in_one_dimension_is_exact_for_any_counts(n, m):
    r = torch.Generator().manual_seed(n * 10 + m)
    a, b = torch.randn(n, 1, generator=r).double(), torch.randn(m, 1, generator=r).double()
    many = n * m
    one, two_ = (x.flatten().sort().values.repeat_interleave(many // len(x)) for x in (a, b))
    assert g.sliced_wasserstein(a, b) ** 2 == pytest.approx(float((one - two_).square().mean()), rel=1e-9, abs=1e-12)


def test_sliced_wasserstein_agrees_with_scipy_on_orders_and_shifts():
    a, b = two(30, 30, 1)
    flat = stats.wasserstein_distance(a.flatten(), b.flatten())
    assert g.sliced_wasserstein(a, b) >= flat - 1e-9  # W2 >= W1
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([3.0, 0.0, 4.0])
    # of a shift by v: root of the mean over directions of (u . v)^2, which is |v| / sqrt(dims) over all directions
    assert g.sliced_wasserstein(x + shift, x, projections=4096) == pytest.approx(5 / math.sqrt(3), rel=0.03)
    assert g.sliced_wasserstein(x, x[torch.randperm(50)]) == pytest.approx(0, abs=1e-12)
    assert g.sliced_wasserstein(x, x + 1) == g.sliced_wasserstein(x, x + 1)


def test_neighbourhoods_by_their_definitions():
    a, b = two(12, 15, 2)
    found = g.neighbourhoods(a, b, k=2)
    a, b = a.double(), b.double()
    reach = lambda x: [sorted(float((p - q).norm()) for q in x)[2] for p in x]  # noqa: E731
    ra, rb = reach(a), reach(b)
    inside = [[float((p - q).norm()) <= r for q, r in zip(b, rb)] for p in a]
    back = [[float((p - q).norm()) <= r for q, r in zip(a, ra)] for p in b]
    assert found["precision"] == pytest.approx(np.mean([any(row) for row in inside]))
    assert found["recall"] == pytest.approx(np.mean([any(row) for row in back]))
    assert found["density"] == pytest.approx(np.mean([sum(row) / 2 for row in inside]))
    assert found["coverage"] == pytest.approx(np.mean([any(col) for col in zip(*inside)]))


def test_neighbourhoods_of_a_set_with_itself_and_of_a_collapsed_one():
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    same = g.neighbourhoods(x, x)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert same["density"] == pytest.approx((3 + 1) / 3)  # each ball holds its k neighbours and its own centre
    collapsed = g.neighbourhoods(x[:1].expand(30, 2), x)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] < 0.1
    assert collapsed["coverage"] < 0.5
    far = g.neighbourhoods(x + 100, x)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    with pytest.raises(RecipeError, match="4 are needed"):
        g.neighbourhoods(x[:3], x)


def test_diversity_within_classes():
    x = torch.tensor([[0.0, 0], [3, 4], [10, 0], [10, 1]])
    label = torch.tensor([0, 0, 1, 1])
    assert g.diversity(x, label) == pytest.approx((5 + 1) / 2)
    assert g.diversity(x[:2]) == pytest.approx(5)
    assert g.diversity(x[:1].expand(6, 2)) == 0
    assert math.isnan(g.diversity(x[:3:2], torch.tensor([0, 1])))


def test_distances_do_not_change_with_the_order_of_samples_or_a_common_rotation():
    a, b = two()
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    for measure in (g.frechet, g.mmd, g.kernel_distance):
        assert measure(a.flip(0), b) == pytest.approx(measure(a, b), rel=1e-6, abs=1e-9)
        assert measure(a @ q, b @ q) == pytest.approx(measure(a, b), rel=1e-4, abs=1e-6)


def test_modes_and_conditional_accuracy():
    means = torch.eye(3)
    x = means[torch.tensor([0] * 98 + [1] * 2)]
    assert g.modes_covered(x, means) == 2
    assert g.modes_covered(x, means, least=0.05) == 1
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert g.conditional_accuracy(logits, torch.tensor([0, 1, 1, 0])) == 0.75


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())


def test_a_classifier_judges_by_what_its_head_reads():
    torch.manual_seed(0)
    model, x = Judge(), torch.randn(10, 1, 4, 4)
    judge = g.Classifier(model, batch_size=4)
    found = judge(x)
    torch.testing.assert_close(found["embedding"], model.body(x.flatten(1)).relu())
    torch.testing.assert_close(found["logits"], model(x))
    assert torch.equal(g.Classifier(model, "body")(x)["embedding"], model.body(x.flatten(1)))
    every = g.figures(x + 0.1, x, torch.zeros(10, dtype=torch.int64), judge)
    assert every["frechet"] == pytest.approx(g.frechet(judge(x + 0.1)["embedding"], found["embedding"]))
    assert set(every) >= {
        "mmd",
        "sliced_wasserstein",
        "kernel_distance",
        "precision",
        "recall",
        "density",
        "coverage",
        "diversity",
        "conditional_accuracy",
    }
    with pytest.raises(RecipeError, match="name the place"):
        g.Classifier(nn.Conv2d(1, 1, 1))


def test_without_a_classifier_samples_are_compared_as_they_are():
    a, b = two()
    found = g.figures(a, b)
    assert found["mmd"] == g.mmd(a, b)
    assert found["precision"] == g.neighbourhoods(a, b)["precision"]
    assert "frechet" not in found
    assert "precision" not in g.figures(a[:3], b)
