import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses.across_tokenizers import (
    binarised,
    by_rows,
    carried_over,
    chunk_sums,
    first_of_chunks,
    last_of_chunks,
    log1mexp,
    merged_chunks,
    probabilities,
    rows_of,
    sorted_gap,
    sorted_l1,
    unnormalised_js,
)
from limbeck.signals import Projection
from limbeck.sketches import Sketch

FORMS = ["binary-ce", "binary-kl", "reverse-binary-kl", "abs", "abs-exp", "k2", "limit"]
inf, nan = math.inf, math.nan


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def likelihoods(*shape: int, seed: int = 0) -> torch.Tensor:
    return -4 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 0.01


# sorted probabilities


@pytest.mark.parametrize(("ours", "theirs"), [(7, 7), (7, 4), (3, 9), (1, 5)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sorted_l1_is_its_formula(ours, theirs, temperature):
    s, t = logits(4, ours), logits(4, theirs, seed=1)
    for row, value in enumerate(sorted_l1(s, t, temperature=temperature)):
        q, p = (sorted((x[row] / temperature).softmax(-1).tolist(), reverse=True) for x in (s, t))
        size = max(ours, theirs)
        q, p = q + [0.0] * (size - len(q)), p + [0.0] * (size - len(p))
        assert value.item() == pytest.approx(sum(abs(a - b) for a, b in zip(p, q)), rel=1e-9)


@given(st.permutations(range(6)), st.permutations(range(4)))
@settings(max_examples=30)
def test_sorted_l1_sees_no_permutation_of_either_vocabulary(ours, theirs):
    s, t = logits(3, 6), logits(3, 4, seed=1)
    torch.testing.assert_close(sorted_l1(s[:, list(ours)], t[:, list(theirs)]), sorted_l1(s, t))
    assert sorted_l1(s, s[:, list(ours)]).abs().max() < 1e-12


def test_sorted_l1_lies_between_0_and_2_and_never_above_the_l1_of_the_unsorted():
    s, t = logits(50, 8) * 5, logits(50, 8, seed=1) * 5
    values = sorted_l1(s, t)
    assert (values >= 0).all()
    assert (values <= 2).all()
    assert (values <= (s.softmax(-1) - t.softmax(-1)).abs().sum(-1) + 1e-12).all()  # sorting is the cheapest transport
    flat, sharp = torch.zeros(1, 1000).double(), torch.tensor([[0.0, -inf]]).double()
    assert sorted_l1(flat, sharp).item() == pytest.approx(2 * (1 - 1 / 1000))


def test_sorted_l1_gradient_is_right_and_reaches_both():
    s, t = logits(3, 5).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: sorted_l1(a, b, temperature=1.7), (s, t))
    p, q = torch.tensor([[0.6, 0.3, 0.1]]).double(), torch.tensor([[0.2, 0.5, 0.3]]).double().requires_grad_()
    (slope,) = torch.autograd.grad(sorted_gap(p, q).sum(), q)
    assert slope.tolist() == [[1.0, -1.0, 0.0]]  # 0.3 = 0.3 in the middle; the least is above, the greatest below


def test_sorted_l1_masked_rows_are_exactly_zero_with_zero_gradient():
    s, t = logits(4, 5), logits(4, 3, seed=1)
    mask = torch.tensor([True, False, True, False])
    s[1], t[3] = nan, inf
    s.requires_grad_()
    values = sorted_l1(s, t, mask=mask, weight=torch.tensor([2.0, nan, 1.0, 1.0]))
    assert values[1] == values[3] == 0
    torch.testing.assert_close(values[0], 2 * sorted_l1(s[:1], t[:1])[0])
    (gradient,) = torch.autograd.grad(values.sum(), s)
    assert gradient.isfinite().all()
    assert (gradient[[1, 3]] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sorted_l1_is_taken_in_fp32(dtype):
    s, t = logits(4, 300).to(dtype), logits(4, 200, seed=1).to(dtype)
    assert sorted_l1(s, t).dtype == torch.float32
    torch.testing.assert_close(sorted_l1(s, t), sorted_l1(s.float(), t.float()))


# chunks


def test_binarised_is_its_formula():
    s, t = likelihoods(5), likelihoods(5, seed=1)
    a, b = (t / 3 - 1e-6).exp(), (s / 3 - 1e-6).exp()
    expected = {
        "binary-ce": -(a * b.log() + (1 - a) * (1 - b).log()),
        "binary-kl": a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log(),
        "reverse-binary-kl": b * (b / a).log() + (1 - b) * ((1 - b) / (1 - a)).log(),
        "abs": (t - s).abs(),
        "abs-exp": (a - b).abs(),
        "k2": ((t - s) / 3) ** 2 / 2,
        "limit": t * -1 * (t / s).log() + t - s,
    }
    for form in FORMS:
        torch.testing.assert_close(binarised(s, t, form=form, temperature=3), expected[form], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_binarised_is_least_where_both_agree_and_only_there(form):
    t = likelihoods(6)
    s = t.clone().requires_grad_()
    least = binarised(s, t, form=form, temperature=2)
    if form not in ("abs", "abs-exp"):  # these have a corner there
        (gradient,) = torch.autograd.grad(least.sum(), s)
        assert gradient.abs().max() < 1e-6
    for step in (-0.5, -0.01, 0.005):
        assert (binarised((t + step).detach(), t, form=form, temperature=2) > least.detach()).all()
    if form != "binary-ce":
        assert least.abs().max() < 1e-12


def test_cross_entropy_is_the_divergence_and_the_entropy_of_the_teacher():
    s, t = likelihoods(5), likelihoods(5, seed=1)
    gap = binarised(s, t, form="binary-ce", temperature=5) - binarised(s, t, form="binary-kl", temperature=5)
    torch.testing.assert_close(gap, binarised(t, t, form="binary-ce", temperature=5))


def test_at_high_temperature_the_divergence_has_the_stated_limit():
    s, t = likelihoods(5), likelihoods(5, seed=1)
    far = 1e5 * binarised(s, t, form="binary-kl", temperature=1e5, epsilon=1e-14)
    torch.testing.assert_close(far, binarised(s, t, form="limit"), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_binarised_at_the_edges_is_finite_with_a_finite_gradient(form):
    edges = torch.tensor([0.0, -1e-9, -1e-3, -5.0, -1e3, 1e-6])  # also what rounding leaves above 0
    s, t = (x.flatten().clone().requires_grad_() for x in torch.meshgrid(edges, edges, indexing="ij"))
    for temperature in (1.0, 100.0):
        value = binarised(s, t, form=form, temperature=temperature)
        assert value.isfinite().all(), value
        for gradient in torch.autograd.grad(value.sum(), (s, t)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_binarised_gradients_are_right_and_masked_chunks_have_none(form):
    s, t = likelihoods(4).requires_grad_(), likelihoods(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: binarised(a, b, form=form, temperature=2), (s, t))
    mask = torch.tensor([True, False, True, False])
    broken = torch.where(mask, s.detach(), nan).requires_grad_()
    value = binarised(broken, t, form=form, mask=mask, temperature=2)
    assert (value[~mask] == 0).all()
    torch.testing.assert_close(value[mask], binarised(s, t, form=form, temperature=2)[mask])
    (gradient,) = torch.autograd.grad(value.sum(), broken)
    assert (gradient[~mask] == 0).all()
    assert gradient.isfinite().all()


def test_binarised_refuses_in_sentences():
    x = likelihoods(3)
    with pytest.raises(RecipeError, match="Did you mean 'binary-kl'"):
        binarised(x, x, form="binarykl")
    with pytest.raises(RecipeError, match="temperature=0"):
        binarised(x, x, temperature=0)
    with pytest.raises(RecipeError, match=r"chunks \[3\], the teacher \[2\]"):
        binarised(x, x[:2])
    with pytest.raises(RecipeError, match="temperature -1"):
        sorted_l1(logits(2, 3), logits(2, 3), temperature=-1)
    with pytest.raises(RecipeError, match=r"rows \[2\], the teacher \[3\]"):
        sorted_l1(logits(2, 3), logits(3, 3))


def test_log1mexp_keeps_its_digits_at_both_ends():
    x = torch.tensor([-1e-12, -1e-3, -0.6, -0.8, -50.0], dtype=torch.float64)
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    for found, value in zip(log1mexp(x).tolist(), x.tolist()):
        assert found == pytest.approx(float((1 - Decimal(value).exp()).ln()), rel=1e-13)


groups_of = st.lists(st.lists(st.integers(-1, 4), min_size=6, max_size=6), min_size=1, max_size=3)


@given(groups_of)
@settings(max_examples=40)
def test_chunk_sums_and_places_are_those_of_a_loop(rows):
    group = torch.tensor(rows)
    values = logits(*group.shape)
    sums, last, first = chunk_sums(values, group, 5), last_of_chunks(group, 5), first_of_chunks(group, 5)
    for b, row in enumerate(rows):
        for c in range(5):
            at = [i for i, g in enumerate(row) if g == c]
            assert sums[b, c].item() == pytest.approx(sum(values[b, i].item() for i in at), abs=1e-12)
            assert last[b, c] == (max(at) if at else -1)
            assert first[b, c] == (min(at) if at else -1)


@given(groups_of, st.lists(st.booleans(), min_size=5, max_size=5))
@settings(max_examples=40)
def test_likelihoods_of_merged_chunks_are_sums_of_theirs(rows, closes):
    group = torch.tensor(rows)
    flags = torch.tensor(closes).expand(len(rows), 5)
    merged = merged_chunks(group, flags)
    values = logits(*group.shape)
    chunks, coarse = chunk_sums(values, group, 5), chunk_sums(values, merged, 5)
    number, expected = 0, torch.zeros_like(coarse)
    for c in range(5):
        expected[:, number] += chunks[:, c]
        number += closes[c]
    torch.testing.assert_close(coarse, expected)
    assert ((merged < 0) == (group < 0)).all()


def test_merging_nothing_changes_nothing():
    group = torch.tensor([[0, 0, 1, -1, 2]])
    assert torch.equal(merged_chunks(group, torch.ones(1, 3, dtype=torch.bool)), group)


def test_infinite_values_of_other_tokens_do_not_reach_a_chunk():
    values = torch.tensor([[nan, 1.0, inf]]).requires_grad_()
    sums = chunk_sums(values, torch.tensor([[-1, 0, -1]]), 2)
    assert sums.tolist() == [[1.0, 0.0]]
    (gradient,) = torch.autograd.grad(sums.sum(), values)
    assert gradient.tolist() == [[0.0, 1.0, 0.0]]


def test_a_token_of_a_subword_model_is_the_sum_of_its_bytes():
    # p over 4 words of two letters, and the same distribution letter by letter: the chain rule
    words = probabilities(logits(1, 4), 1.0)[0]  # aa, ab, ba, bb
    first = torch.stack([words[:2].logsumexp(0), words[2:].logsumexp(0)])
    second = torch.stack([words[:2] - first[0], words[2:] - first[1]])
    for a in (0, 1):
        for b in (0, 1):
            letters = torch.stack([first[a], second[a, b]])[None]
            torch.testing.assert_close(chunk_sums(letters, torch.tensor([[0, 0]]), 1)[0, 0], words[2 * a + b])


# whole distributions of chunks


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_js_of_distributions_is_js(beta):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    found = unnormalised_js(t.log_softmax(-1), s.log_softmax(-1), beta, floor=1e-300)
    torch.testing.assert_close(found, losses.find("trl-js")(s, t, beta=beta, scale=False))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_js_of_any_masses_is_never_negative_and_zero_only_at_equality(beta):
    p, q = likelihoods(500, 5) * 3, likelihoods(500, 5, seed=1) * 3
    values = unnormalised_js(p, q, beta)
    assert (values > 0).all()
    assert unnormalised_js(p, p, beta).abs().max() < 1e-12
    if beta in (0, 1):
        assert (unnormalised_js(p, q, beta, mass=False) < 0).any()  # which is why the masses are there
    else:
        assert torch.equal(unnormalised_js(p, q, beta, mass=False), values)


def test_js_of_masses_clamps_and_stays_finite():
    p = torch.tensor([[-inf, 0.0, -700.0]], requires_grad=True)
    q = torch.tensor([[0.0, -inf, -inf]], requires_grad=True)
    for beta in (0.0, 0.5, 1.0):
        value = unnormalised_js(p, q, beta)
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), (p, q)):
            assert gradient.isfinite().all()


def test_carried_over_moves_mass_and_never_makes_any():
    log_p = probabilities(logits(3, 5), 1.0)
    found = carried_over(log_p, torch.tensor([2, 0, 2, -1, 1]), 4)
    p = log_p.exp()
    expected = torch.stack([p[:, 1], p[:, 4], p[:, 0] + p[:, 2], torch.zeros(3).double()], -1)
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(carried_over(log_p, torch.arange(5), 5), log_p)


# rows


def projection(batch: int, tokens: int, classes: int, seed: int = 0, **more) -> Projection:
    g = torch.Generator().manual_seed(seed)
    hidden, weight = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((batch, tokens, 3), (classes, 3))
    )
    bias = torch.randn(classes, generator=g, dtype=torch.float64)
    return Projection(hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), **more)


@pytest.mark.parametrize("room", [1, 200, 10**9])
def test_rows_in_pieces_give_the_values_and_gradients_of_all_at_once(room):
    ours, theirs = projection(2, 5, 7, scale=2.0), projection(2, 4, 6, seed=1, softcap=2.0)
    at, partner, each = torch.tensor([0, 3, 8]), torch.tensor([1, 2, 7]), torch.tensor([1.0, 2.0, 3.0])

    def value(s, t, factor):
        return sorted_gap(s.softmax(-1), t.softmax(-1)) * factor

    found = by_rows(value, rows_of(ours, at), rows_of(theirs, partner), each=(each,), room=room)
    dense = ours.materialise().flatten(0, 1)[at], theirs.materialise().flatten(0, 1)[partner]
    torch.testing.assert_close(found, value(*dense, each))
    leaves = (ours.hidden, ours.weight, ours.bias)
    for a, b in zip(
        torch.autograd.grad(found.square().sum(), leaves),
        torch.autograd.grad(value(*dense, each).square().sum(), leaves),
    ):
        torch.testing.assert_close(a, b)


def test_no_rows_give_no_values_but_a_gradient():
    z = projection(1, 2, 4)
    nothing = by_rows(lambda s, t: s.sum(-1), rows_of(z, torch.tensor([], dtype=torch.int64)), logits(0, 9))
    assert nothing.shape == (0,)
    nothing.sum().backward()
    assert z.hidden.grad.abs().sum() == 0


def test_pieces_are_held_one_at_a_time():
    tokens, classes = 512, 4000
    hidden, weight = torch.randn(tokens, 8, requires_grad=True), torch.randn(classes, 8, requires_grad=True)
    seen = []

    def value(s, t):
        seen.append(s.shape[0])
        return sorted_gap(F.softmax(s, -1), F.softmax(t, -1))

    by_rows(
        value, Projection(hidden, weight), Projection(hidden.detach(), weight.detach()), room=64 * classes * 4
    ).sum().backward()
    assert set(seen) == {64}
    assert len(seen) == 2 * tokens // 64  # once forward, once more in the backward pass


def test_a_part_of_a_distribution_is_refused():
    sketch = Sketch(torch.zeros(1, 2, 1).long(), torch.zeros(1, 2, 1), torch.zeros(1, 2), 5)
    with pytest.raises(RecipeError, match="Give the teacher itself"):
        rows_of(sketch, torch.tensor([0]))
