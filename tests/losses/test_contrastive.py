"""Contrast with the batch and with a memory: closed forms, limits, both ways of scoring."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.contrastive import info_nce, memory_scores, nce


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def test_info_nce_is_a_cross_entropy_over_cosines():
    s, t = numbers(5, 4), numbers(5, 4, seed=1)
    cosines = F.cosine_similarity(s[:, None], t[None], dim=-1)
    expected = F.cross_entropy(cosines / 0.3, torch.arange(5), reduction="none")
    torch.testing.assert_close(info_nce(s, t, temperature=0.3), expected)
    assert find("info-nce") is info_nce


@given(n=st.integers(1, 9), temperature=st.floats(0.02, 5))
def test_info_nce_of_equal_features_is_the_logarithm_of_their_number(n, temperature):
    x = torch.ones(n, 3)
    values = info_nce(x, x, temperature=temperature)
    torch.testing.assert_close(values, torch.full((n,), math.log(n)), atol=1e-5, rtol=1e-5)


def test_info_nce_has_zero_as_its_lower_limit_and_its_upper_one_is_as_written():
    x = torch.eye(4).double()
    values = [float(info_nce(x, x, temperature=h).sum()) for h in (0.5, 0.1, 0.02)]
    assert values[0] > values[1] > values[2] >= 0
    assert values[2] < 1e-20 * 4 or values[2] == pytest.approx(4 * math.log1p(3 * math.exp(-50)), rel=1e-6, abs=1e-12)
    worst = info_nce(torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0], [1.0]]), temperature=0.5)
    assert (worst <= math.log(2) + 2 / 0.5).all()


def test_info_nce_does_not_see_lengths_and_follows_the_order():
    s, t = numbers(5, 4), numbers(5, 4, seed=1)
    lengths = torch.linspace(0.1, 4, 5).double()[:, None]
    torch.testing.assert_close(info_nce(s * lengths, t / lengths), info_nce(s, t))
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(info_nce(s[order], t[order]), info_nce(s, t)[order])


def test_info_nce_leaves_masked_samples_out_as_candidates_too():
    s, t = numbers(5, 4), numbers(5, 4, seed=1)
    mask = torch.tensor([True, False, True, True, False])
    broken = t.masked_fill(~mask[:, None], math.nan).requires_grad_()
    values = info_nce(s, broken, mask=mask)
    torch.testing.assert_close(values, info_nce(s[mask], t[mask]))
    assert torch.autograd.grad(values.sum(), broken)[0][~mask].abs().max() == 0


def test_info_nce_gradients_zeros_and_mistakes():
    s, t = numbers(4, 3).requires_grad_(), numbers(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, temperature=0.5), (s, t))
    zero = torch.zeros(3, 2, requires_grad=True)
    value = info_nce(zero, torch.randn(3, 2))
    torch.testing.assert_close(value, torch.full((3,), math.log(3.0)))
    assert torch.autograd.grad(value.sum(), zero)[0].abs().max() == 0
    with pytest.raises(RecipeError, match="temperature 0"):
        info_nce(s, t, temperature=0)
    with pytest.raises(RecipeError, match=r"\[4, 3\], the teacher's \[4, 2\]"):
        info_nce(s, t[:, :2])
    half = info_nce(s.detach().half(), t.detach().half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(info_nce(s.detach().half(), t.detach().half()), half)
    assert half.dtype == torch.float32


def slow_nce(positive, negatives, z, rows):
    """The paper's products of probabilities, one candidate at a time."""
    noise = len(negatives) / rows
    total = -math.log(math.exp(positive) / z / (math.exp(positive) / z + noise))
    for s in negatives:
        total -= math.log(noise / (math.exp(s) / z + noise))
    return total


@given(st.integers(1, 12), st.integers(1, 100), st.floats(-3, 3))
def test_nce_is_the_slow_formula(draws, rows, log_z):
    positive, negatives = 3 * numbers(4, seed=draws), 3 * numbers(4, draws, seed=rows)
    values = nce(positive, negatives, log_z, rows)
    expected = [slow_nce(p, n, math.exp(log_z), rows) for p, n in zip(positive.tolist(), negatives.tolist())]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


def test_nce_is_finite_where_the_slow_formula_is_not():
    values = nce(torch.tensor([-300.0, 300.0]), torch.tensor([[300.0], [-300.0]]), 0.0, 1)
    torch.testing.assert_close(values, torch.tensor([600.0, 0.0]))


def test_nce_is_least_where_the_score_is_the_log_ratio_of_data_to_noise():
    """With data p and noise q over a finite set, the expected loss is least at exp(score) / Z = p (Gutmann, theorem 1)."""
    p = torch.tensor([0.5, 0.3, 0.2]).double()
    draws, rows = 4, 3  # noise is even over the three

    def expected_loss(score):
        positive = sum(
            p[i] * nce(score[i : i + 1], score.new_full((1, draws), -math.inf), 0.0, rows)[0] for i in range(3)
        )
        never = score.new_full((1,), math.inf)
        noise = sum(nce(never, score[i].expand(1, draws), 0.0, rows)[0] / rows for i in range(3))
        return positive + noise

    score = p.log().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_loss(score), score)
    assert float(gradient.abs().max()) < 1e-12
    for change in numbers(5, 3, seed=3):
        assert expected_loss(p.log() + 0.1 * change) > expected_loss(p.log())


def test_nce_gradients():
    positive, negatives = numbers(3).requires_grad_(), numbers(3, 5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nce(a, b, 0.3, 20), (positive, negatives))


@pytest.mark.parametrize("rows", [3, 32 * 6, 32 * 6 + 1, 400])
def test_scores_are_the_same_from_all_products_and_from_copied_entries(rows):
    bank, queries = numbers(rows, 4), numbers(5, 4, seed=1).requires_grad_()
    entries = torch.randint(0, rows, (5, 6), generator=torch.Generator().manual_seed(2))
    found = memory_scores(bank, queries, entries)
    expected = torch.stack([torch.stack([bank[e] @ q for e in row]) for q, row in zip(queries, entries)])
    torch.testing.assert_close(found, expected)
    weights = numbers(5, 6, seed=3)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), queries)[0] for x in (found, expected))
    torch.testing.assert_close(ours, theirs)
