"""Relations between tokens: written out, invariant where they must be, blind to what does not count."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.token_relations import relation_kl, relation_scores


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow(q, k, p, r, mask, heads):
    """Loops over texts, heads and tokens, tokens that do not count left out beforehand."""
    values = []
    for b in range(len(q)):
        kept, total, n = mask[b].nonzero().flatten(), 0.0, 0
        for h in range(heads):
            rows = []
            for x, y in ((q, k), (p, r)):
                width = x.shape[-1] // heads
                cut = slice(h * width, (h + 1) * width)
                rows.append(torch.softmax(x[b, kept][:, cut] @ y[b, kept][:, cut].T / math.sqrt(width), -1))
            ours, theirs = rows
            total, n = total + (theirs * (theirs.log() - ours.log())).sum(), n + len(kept)
        values.append(total / n if n else torch.tensor(0.0, dtype=torch.float64))
    return torch.stack(values)


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(0, 2**16))
def test_it_is_the_loop_over_texts_heads_and_tokens(batch, tokens, heads, seed):
    q, k = drawn(batch, tokens, 8, seed=seed), drawn(batch, tokens, 8, seed=seed + 1)
    p, r = drawn(batch, tokens, 4, seed=seed + 2), drawn(batch, tokens, 4, seed=seed + 3)
    mask = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed)) > 0.4
    found = relation_kl(relation_scores(q, k, heads, mask=mask), relation_scores(p, r, heads, mask=mask), mask=mask)
    torch.testing.assert_close(found, slow(q, k, p, r, mask, heads))
    whole = torch.ones_like(mask)
    bare = relation_kl(relation_scores(q, k, heads), relation_scores(p, r, heads))
    torch.testing.assert_close(bare, slow(q, k, p, r, whole, heads))


def test_equal_relations_are_no_distance_apart_whatever_the_width():
    x = drawn(2, 4, 6)
    wide = torch.cat([x.unflatten(-1, (2, 3)), torch.zeros(2, 4, 2, 9)], -1).flatten(2) * 2  # sqrt(12) / sqrt(3) = 2
    narrow, other = relation_scores(x, x, 2), relation_scores(wide, wide / 2, 2)
    torch.testing.assert_close(narrow, other)
    assert relation_kl(narrow, other).abs().max() < 1e-12
    turn = torch.linalg.qr(drawn(3, 3, seed=5)).Q  # a rotation of every head's own space
    turned = (x.unflatten(-1, (2, 3)) @ turn).flatten(2)
    torch.testing.assert_close(relation_scores(turned, turned, 2), narrow)


def test_scores_are_those_of_attention():
    q, k, v = drawn(2, 5, 8), drawn(2, 5, 8, seed=1), drawn(2, 5, 8, seed=2)
    scores = relation_scores(q, k, 4)
    parts = [x.unflatten(-1, (4, 2)).transpose(1, 2) for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*parts)
    torch.testing.assert_close(scores.softmax(-1) @ parts[2], expected)


def test_what_does_not_count_changes_nothing_and_has_no_gradient():
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    q, p = drawn(3, 3, 4).requires_grad_(), drawn(3, 3, 4, seed=1)
    clean = relation_kl(relation_scores(q, q, 2, mask=mask), relation_scores(p, p, 2, mask=mask), mask=mask)
    spoilt = q.detach().clone()
    spoilt[~mask] = math.nan
    spoilt.requires_grad_()
    value = relation_kl(relation_scores(spoilt, spoilt, 2, mask=mask), relation_scores(p, p, 2, mask=mask), mask=mask)
    assert torch.equal(value, clean)
    assert value[2] == 0
    assert value[1] == 0  # one token attends to itself alone
    (gradient,) = torch.autograd.grad(value.sum(), spoilt)
    assert not gradient[~mask].any()
    assert gradient[0, :2].abs().sum() > 0


def test_the_gradient_is_right_and_the_weight_multiplies():
    mask = torch.tensor([[True, True, True], [True, True, False]])
    p = relation_scores(drawn(2, 3, 4, seed=1), drawn(2, 3, 4, seed=2), 2, mask=mask)

    def value(q, k):
        return relation_kl(relation_scores(q, k, 2, mask=mask), p, mask=mask)

    q, k = drawn(2, 3, 4).requires_grad_(), drawn(2, 3, 4, seed=3).requires_grad_()
    torch.autograd.gradcheck(value, (q, k))
    weight = torch.tensor([2.0, 0.5])
    torch.testing.assert_close(
        relation_kl(relation_scores(q, k, 2, mask=mask), p, mask=mask, weight=weight), value(q, k) * weight
    )


def test_half_precision_is_summed_in_full():
    q, p = drawn(2, 6, 8).half(), drawn(2, 6, 8, seed=1).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = relation_scores(q, q, 2)
    assert found.dtype == torch.float32
    assert torch.equal(found, relation_scores(q.float(), q.float(), 2))
    assert relation_kl(found, relation_scores(p, p, 2)).dtype == torch.float32


def test_errors_and_the_name():
    assert find("relation-kl") is relation_kl
    with pytest.raises(RecipeError, match="width of 6 cannot be cut into 4 heads; into 1, 2, 3, 6 it can"):
        relation_scores(drawn(1, 2, 6), drawn(1, 2, 6), 4)
    with pytest.raises(RecipeError, match=r"shapes \[1, 2, 6\] and \[1, 2, 4\]"):
        relation_scores(drawn(1, 2, 6), drawn(1, 2, 4), 2)
