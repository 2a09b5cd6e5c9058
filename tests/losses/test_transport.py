"""Sinkhorn transport: closed forms at one and two rows, against the loop of the paper, limits, masks, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.token_divergences import tvd
from limbeck.losses.transport import plan, sinkhorn, transported


def logits(rows: int, classes: int, seed: int = 0, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(sharp * torch.randn(rows, classes, generator=g, dtype=torch.float64) for _ in range(2))


def by_the_loop(z, w, temperature=2.0, epsilon=0.1, iterations=20):
    """As the paper writes it: a kernel, normalised row by row and column by column, and a double sum."""
    n = len(z)
    p, t = (z / temperature).softmax(1), (w / temperature).softmax(1)
    ground = [[(p[i] - t[j]).abs().sum() for j in range(n)] for i in range(n)]
    k = [[torch.exp(-ground[i][j] / epsilon) for j in range(n)] for i in range(n)]
    for _ in range(iterations):
        k = [[k[i][j] / sum(k[i]) for j in range(n)] for i in range(n)]
        sums = [sum(k[i][j] for i in range(n)) for j in range(n)]
        k = [[k[i][j] / sums[j] for j in range(n)] for i in range(n)]
    return sum(k[i][j] * ground[i][j] for i in range(n) for j in range(n)) / n


@pytest.mark.parametrize(("rows", "classes"), [(2, 3), (5, 4)])
def test_values_and_gradients_are_those_of_the_papers_loop(rows, classes):
    z, w = logits(rows, classes)
    z.requires_grad_(), w.requires_grad_()
    found, expected = sinkhorn(z, w).mean(), by_the_loop(z, w)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, (z, w)), torch.autograd.grad(expected, (z, w))):
        torch.testing.assert_close(ours, theirs)


def test_one_row_is_twice_the_total_variation():
    z, w = logits(1, 6)
    torch.testing.assert_close(sinkhorn(z, w, temperature=1.0), 2 * tvd(z, w))
    torch.testing.assert_close(sinkhorn(z, w), 2 * tvd(z, w, temperature=2.0, scale=False))


def test_two_rows_in_closed_form():
    """Of a 2 x 2 kernel the doubly normalised one has diagonal s / (1 + s), s = exp((W01 + W10 - W00 - W11) / (2 epsilon))."""
    z, w = logits(2, 3, seed=4)
    p, t = (z / 2).softmax(1), (w / 2).softmax(1)
    ground = (p[:, None] - t[None]).abs().sum(-1)
    s = math.exp(float(ground[0, 1] + ground[1, 0] - ground[0, 0] - ground[1, 1]) / 0.2)
    expected = (s * (ground[0, 0] + ground[1, 1]) + ground[0, 1] + ground[1, 0]) / (1 + s) / 2
    torch.testing.assert_close(sinkhorn(z, w, iterations=200).mean(), expected)


def test_disjoint_distributions_still_have_a_gradient_and_the_most_that_there_is():
    z = torch.tensor([[30.0, 0, 0, 0], [0, 30.0, 0, 0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[0, 0, 30.0, 0], [0, 0, 0, 30.0]], dtype=torch.float64)
    assert sinkhorn(z, w, temperature=1.0).mean().item() == pytest.approx(2, abs=1e-9)
    softer = sinkhorn(z, w, temperature=10.0).mean()
    assert float(torch.autograd.grad(softer, z)[0].abs().max()) > 1e-3


def test_equal_sides_cost_what_epsilon_blurs_and_nothing_when_debiased():
    z, _ = logits(4, 3)
    assert float(sinkhorn(z, z).mean()) > 0.01
    assert (
        float(sinkhorn(z, z, epsilon=1e-3).mean()) < 1e-9
    )  # distinct rows: each stays where it is, and nothing underflows
    assert torch.equal(sinkhorn(z, z, debiased=True), torch.zeros(4, dtype=torch.float64))
    grad = torch.autograd.grad(sinkhorn(z.requires_grad_(), z.detach(), debiased=True).sum(), z)[0]
    assert float(grad.abs().max()) < 1e-3  # what 20 iterations leave over


def test_the_debiased_one_takes_off_both_sides_own_cost():
    z, w = logits(3, 5)
    own = (sinkhorn(z, z) + sinkhorn(w, w)) / 2
    torch.testing.assert_close(sinkhorn(z, w, debiased=True), sinkhorn(z, w) - own)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_order_of_a_batch_does_not_matter(rows, classes, seed):
    z, w = logits(rows, classes, seed)
    g = torch.Generator().manual_seed(seed)
    together, alone = torch.randperm(rows, generator=g), torch.randperm(rows, generator=g)
    values = sinkhorn(z, w)
    torch.testing.assert_close(sinkhorn(z[together], w[together]), values[together])
    torch.testing.assert_close(sinkhorn(z, w[alone]).mean(), values.mean())
    assert float(values.min()) >= 0
    assert float(values.max()) <= 2 + 1e-12 or rows > 1  # a row's mass is 1 only up to what the iterations leave
    if classes == 1:
        assert float(values.abs().max()) == 0


@given(st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_the_plan_is_doubly_normalised(rows, seed):
    ground = torch.rand(rows, rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = plan(ground, 0.5, 200)
    for dim in (0, 1):
        torch.testing.assert_close(found.sum(dim), torch.ones(rows, dtype=torch.float64))


def test_sets_side_by_side_are_sets_alone_and_what_is_masked_is_as_if_it_were_not_there():
    z, w = logits(12, 5, seed=2)
    z, w = z.view(3, 4, 5).clone(), w.view(3, 4, 5).clone()
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    z[~mask], w[~mask] = math.nan, math.inf
    z.requires_grad_(), w.requires_grad_()
    for debiased in (False, True):
        values = transported(z, w, mask=mask, debiased=debiased)
        assert float(values.detach()[~mask].abs().sum()) == 0
        for ours, theirs, counts, row in zip(z, w, mask, values):
            if counts.any():
                torch.testing.assert_close(row[counts], sinkhorn(ours[counts], theirs[counts], debiased=debiased))
            torch.testing.assert_close(sinkhorn(ours, theirs, mask=counts, debiased=debiased).sum(), row.sum())
        for grad in torch.autograd.grad(values.sum(), (z, w)):
            assert grad.isfinite().all()
            assert float(grad[~mask].abs().sum()) == 0


def test_nothing_that_counts_is_one_zero_with_a_gradient():
    z = torch.full((2, 3), math.nan, requires_grad=True)
    value = sinkhorn(z, z.detach(), mask=torch.zeros(2, dtype=torch.bool))
    assert value.tolist() == [0.0]
    assert torch.equal(torch.autograd.grad(value.mean(), z)[0], torch.zeros(2, 3))


def test_gradients_in_both():
    z, w = logits(3, 4, seed=7)
    z.requires_grad_(), w.requires_grad_()
    for debiased in (False, True):
        assert torch.autograd.gradcheck(lambda a, b, d=debiased: sinkhorn(a, b, epsilon=0.5, debiased=d), (z, w))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_before_anything_is_computed(dtype):
    z, w = (x.to(dtype) for x in logits(3, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sinkhorn(z, w, epsilon=1e-3)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sinkhorn(z.double(), w.double(), epsilon=1e-3).float(), rtol=1e-3, atol=1e-4)


def test_a_class_that_both_rule_out_changes_nothing():
    z, w = logits(3, 4)
    none = torch.full((3, 1), -math.inf, dtype=torch.float64)
    more = torch.cat([z, none], 1).requires_grad_()
    values = sinkhorn(more, torch.cat([w, none], 1))
    torch.testing.assert_close(values, sinkhorn(z, w))
    assert torch.autograd.grad(values.sum(), more)[0].isfinite().all()


def test_what_cannot_be_is_said_and_the_name_is_known():
    z, w = logits(2, 3)
    assert find("sinkhorn") is sinkhorn
    for options in ({"temperature": 0.0}, {"epsilon": 0.0}, {"iterations": 0}):
        with pytest.raises(RecipeError, match="needed are a temperature and an epsilon above 0"):
            sinkhorn(z, w, **options)
    with pytest.raises(RecipeError, match="compares equal shapes"):
        sinkhorn(z, w[:1])
