"""Graphs of tokens: against loops, invariances, limits, gradients and edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses.graph import inner_relations, token_neighbours


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width):
    return torch.linalg.qr(numbers(width, width, seed=7)).Q


def slow(x, y, k, spread):
    """Token by token: the teacher's nearest, both networks' closeness to them, the divergence."""
    n, values = len(x), []
    sigma = [
        spread * sum(float((z[i] - z[j]) @ (z[i] - z[j])) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        for z in (x, y)
    ]
    for i in range(n):
        near = sorted((j for j in range(n) if j != i), key=lambda j: float((y[i] - y[j]).norm()))[:k]
        a = [[math.exp(-float((z[i] - z[j]).square().sum()) / (2 * s)) for j in near] for z, s in zip((x, y), sigma)]
        q, p = ([math.exp(v) / sum(map(math.exp, row)) for v in row] for row in a)
        values.append(sum(pj * math.log(pj / qj) for pj, qj in zip(p, q)))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("k", "spread"), [(1, 1.0), (3, 1.0), (3, 0.2), (6, 1.0), (20, 1.0)])
def test_neighbours_are_the_slow_formula(k, spread):
    x, y = numbers(7, 3), numbers(7, 5, seed=1)
    torch.testing.assert_close(token_neighbours(x, y, neighbours=k, spread=spread), slow(x, y, k, spread))


def test_the_reverse_divergence_takes_the_teachers_neighbours_too():
    x, y = numbers(6, 3), numbers(6, 4, seed=1)
    whole = token_neighbours(x, y, neighbours=5, reverse=True)
    torch.testing.assert_close(whole, token_neighbours(y, x, neighbours=5))  # all are neighbours for both
    assert not torch.allclose(token_neighbours(x, y, neighbours=2, reverse=True), token_neighbours(y, x, neighbours=2))


def test_neighbours_do_not_see_rotation_shift_or_scale():
    x, y = numbers(8, 4), numbers(8, 3, seed=1)
    moved = 5 * x @ rotation(4) + 3
    torch.testing.assert_close(token_neighbours(moved, 0.1 * y @ rotation(3) - 2), token_neighbours(x, y))
    assert token_neighbours(x, 3 * x @ rotation(4) + 1).abs().max() < 1e-12


def test_a_new_order_of_tokens_reorders_the_values():
    x, y, order = numbers(6, 4), numbers(6, 3, seed=1), torch.tensor([5, 2, 0, 1, 4, 3])
    torch.testing.assert_close(
        token_neighbours(x[order], y[order], neighbours=3), token_neighbours(x, y, neighbours=3)[order]
    )


def test_one_neighbour_is_certain_and_few_tokens_have_no_graph():
    x, y = numbers(5, 3).requires_grad_(), numbers(5, 3, seed=1)
    assert token_neighbours(x, y, neighbours=1).abs().max() == 0
    for n in (0, 1, 2):
        values = token_neighbours(x[:n], y[:n])
        assert values.tolist() == [0.0] * n
    assert torch.autograd.grad(values.sum(), x)[0].abs().max() == 0


@given(n=st.integers(3, 9), k=st.integers(1, 10), scale=st.sampled_from([0.0, 1e-4, 1.0, 1e4]))
def test_neighbours_never_give_nan_or_less_than_zero(n, k, scale):
    x, y = (scale * numbers(n, 4)).float().requires_grad_(), numbers(n, 3, seed=1).float()
    for first, second in ((x, y), (y, x)):
        values = token_neighbours(first, second, neighbours=k)
        assert (values >= 0).all()
        assert torch.autograd.grad(values.sum(), x)[0].isfinite().all()


def test_tokens_that_do_not_count_are_not_there():
    x, y = numbers(7, 3), numbers(7, 4, seed=1)
    mask = torch.tensor([True, True, False, True, True, False, True])
    broken = x.masked_fill(~mask[:, None], math.nan).requires_grad_()
    values = token_neighbours(broken, y, neighbours=3, mask=mask)
    torch.testing.assert_close(values, token_neighbours(x[mask], y[mask], neighbours=3))
    assert torch.autograd.grad(values.sum(), broken)[0][~mask].abs().max() == 0


def test_gradient_of_neighbours_with_the_spread_held_still():
    x, y = numbers(5, 3), numbers(5, 2, seed=1)
    at = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(token_neighbours(at, y, neighbours=3).sum(), at)
    sigma = 2 * (x - x.mean(0)).square().sum() / 4
    near = (torch.cdist(y, y) + torch.eye(5) * 1e9).topk(3, largest=False).indices

    def held(z):
        a = (-(z[:, None] - z[near]).square().sum(2) / (2 * sigma)).exp()
        s = 2 * (y - y.mean(0)).square().sum() / 4
        b = (-(y[:, None] - y[near]).square().sum(2) / (2 * s)).exp()
        return (b.softmax(1) * (b.log_softmax(1) - a.log_softmax(1))).sum()

    at = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(held(at), at)[0])


def test_inner_relations_are_their_formula_and_do_not_see_rotations():
    x, y = numbers(3, 5, 4), numbers(3, 5, 6, seed=1)
    values = inner_relations(x, y)
    for b in range(3):
        s = (x[b] @ x[b].T / 2).softmax(1)
        t = (y[b] @ y[b].T / math.sqrt(6)).softmax(1)
        torch.testing.assert_close(values[b], ((s - t) ** 2).mean())
    assert inner_relations(x, x @ rotation(4)).max() < 1e-25
    order = torch.tensor([4, 0, 2, 1, 3])
    torch.testing.assert_close(inner_relations(x[:, order], y[:, order]), values)


def test_inner_relations_gradients_masks_and_precision():
    x, y = numbers(2, 3, 2).requires_grad_(), numbers(2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(inner_relations, (x, y))
    mask = torch.tensor([True, False])
    broken = x.detach().clone()
    broken[1] = math.nan
    broken.requires_grad_()
    value = inner_relations(broken, y.detach(), mask=mask, weight=torch.tensor([2.0, math.nan]))
    torch.testing.assert_close(value, torch.stack([2 * inner_relations(x, y)[0], torch.tensor(0.0).double()]))
    assert torch.autograd.grad(value.sum(), broken)[0][1].abs().max() == 0
    one = inner_relations(numbers(2, 1, 3), numbers(2, 1, 5))
    assert one.tolist() == [0.0, 0.0]  # a single token is wholly like itself
    half = x.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(
            inner_relations(half, y.detach().float()), inner_relations(half.float(), y.detach().float())
        )


def test_mistakes_are_sentences():
    with pytest.raises(RecipeError, match=r"neighbours=0, spread=1.0"):
        token_neighbours(torch.zeros(4, 2), torch.zeros(4, 2), neighbours=0)
    with pytest.raises(RecipeError, match=r"given were \[2, 3, 4\] and \[2, 5, 4\]"):
        inner_relations(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
