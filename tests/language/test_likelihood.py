"""What is said of tokens and of distributions, in every form that logits have, agrees with the plain one."""

import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.language.likelihood import log_probs_of, next_tokens, rows_of, values_of
from limbeck.losses import kl
from limbeck.losses.token_divergences import skew_reverse_kl
from limbeck.signals import Projection
from limbeck.sketches import Sketch


def case(classes=9, width=4, scale=2.0):
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, width, generator=g, dtype=torch.float64)
    weight = torch.randn(classes, width, generator=g, dtype=torch.float64)
    found = Projection(hidden.requires_grad_(), weight.requires_grad_(), scale=scale)
    tokens = torch.randint(0, classes, (3, 5), generator=g)
    return found, tokens, torch.rand(3, 5, generator=g) < 0.6


@pytest.mark.parametrize("classes", [None, 7])
def test_both_forms_agree_in_values_and_gradients(classes):
    factors, tokens, mask = case()
    tokens = tokens % 7
    whole = factors.materialise()
    expected = whole[..., :classes].log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1) * mask
    (wanted,) = torch.autograd.grad(expected.square().sum(), factors.hidden)
    for logits in (factors, factors.materialise()):
        found = log_probs_of(logits, tokens.masked_fill(~mask, -100), mask, classes)
        torch.testing.assert_close(found, expected)
        (grad,) = torch.autograd.grad(found.square().sum(), factors.hidden)
        torch.testing.assert_close(grad, wanted)


def test_what_does_not_count_may_be_anything():
    z = torch.randn(2, 3, 5)
    z[0, 0] = torch.nan
    mask = torch.tensor([[False, True, True], [True, True, False]])
    z.requires_grad_()
    found = log_probs_of(z, torch.ones(2, 3, dtype=torch.int64), mask)
    found.sum().backward()
    assert found[~mask].tolist() == [0.0, 0.0]
    assert z.grad.isfinite().all()
    assert not z.grad[~mask].any()


def test_draws_do_not_tell_how_likely_a_single_token_is():
    drawn = Sketch.drawn(torch.randn(2, 3, 7), 5, torch.zeros(2, 3))
    with pytest.raises(RecipeError, match=r"are draws.*cache\.top_k"):
        log_probs_of(drawn, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))


def test_a_sketch_says_what_it_knows_and_shares_out_the_rest():
    factors, tokens, mask = case()
    log_p = factors.materialise().detach().log_softmax(-1)
    sketch = Sketch.top(log_p, 3)
    found = log_probs_of(sketch, tokens, mask)
    true = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    known = (sketch.ids == tokens.unsqueeze(-1)).any(-1)
    torch.testing.assert_close(found[mask & known], true[mask & known])
    rest = (1 - log_p.topk(3).values.exp().sum(-1)) / 6
    torch.testing.assert_close(found[mask & ~known].exp(), rest[mask & ~known])
    assert not found[~mask].any()
    assert (mask & ~known).any()


def test_divergences_take_the_form_that_goes_with_the_logits():
    ours, _, mask = case()
    theirs = case(width=6)[0]
    theirs = Projection(theirs.hidden.detach(), theirs.weight.detach(), scale=0.5)
    for loss, options in ((kl, {}), (skew_reverse_kl, {"alpha": 0.3})):
        expected = loss(ours.materialise()[..., :8], theirs.materialise()[..., :8], mask=mask, **options)
        for pair in ((ours, theirs), (ours.materialise(), theirs), (ours.materialise(), theirs.materialise())):
            torch.testing.assert_close(values_of(loss, *pair, mask, classes=8, **options), expected)
    whole = Sketch.top(theirs.materialise(), 9)
    torch.testing.assert_close(
        values_of(kl, ours, whole, mask), kl(ours.materialise(), theirs.materialise(), mask=mask)
    )


def test_rows_in_every_form():
    factors = case()[0]
    some = torch.tensor([2, 0])
    for logits in (factors, factors.materialise(), Sketch.top(factors.materialise(), 2)):
        part = rows_of(logits, some)
        ours, all_ = (x.materialise() if isinstance(x, Projection) else x for x in (part, logits))
        if isinstance(ours, Sketch):
            assert torch.equal(ours.ids, all_.ids[some])
        else:
            torch.testing.assert_close(ours, all_[some])


def test_the_next_token_is_the_one_to_the_right():
    assert next_tokens({"input_ids": torch.tensor([[3, 4, 5]])}).tolist() == [[4, 5, 0]]
