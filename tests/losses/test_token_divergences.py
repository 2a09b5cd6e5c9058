import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses.token_divergences import (
    adaptive_kl,
    continuous_js,
    head_share,
    skew_kl,
    skew_reverse_kl,
    top_k_kl,
    trl_js,
    tvd,
)

ALL = [adaptive_kl, continuous_js, skew_kl, skew_reverse_kl, top_k_kl, trl_js, tvd]
NAMED = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)
inf = math.inf

numbers = st.floats(-30, 30, width=32)
pairs = st.integers(1, 6).flatmap(lambda c: st.tuples(*[st.lists(numbers, min_size=c, max_size=c)] * 2))


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def entropy(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) over the last dimension from probabilities, by scipy."""
    return torch.from_numpy(rel_entr(p.numpy(), q.numpy())).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_each_is_its_formula_on_probabilities(temperature):
    s, t = logits(5, 7), logits(5, 7, seed=1)
    q, p = (x.div(temperature).softmax(-1) for x in (s, t))
    kept = p >= p.topk(3).values[:, -1:]
    fewer, student = (torch.where(kept, x, 0) for x in (p, q))
    m = 0.3 * p + 0.7 * q
    js = 0.3 * entropy(p, m) + 0.7 * entropy(q, m)
    expected = [
        (skew_kl, {"alpha": 0.2}, entropy(p, 0.2 * p + 0.8 * q)),
        (skew_reverse_kl, {"alpha": 0.2}, entropy(q, 0.8 * p + 0.2 * q)),
        (tvd, {}, (p - q).abs().sum(-1) / 2),
        (continuous_js, {"beta": 0.3}, js / 0.21),
        (trl_js, {"beta": 0.3}, js),
        (top_k_kl, {"k": 3}, entropy(fewer / fewer.sum(-1, keepdim=True), q)),
        (
            top_k_kl,
            {"k": 3, "renormalise_student": True},
            entropy(fewer / fewer.sum(-1, keepdim=True), student / student.sum(-1, keepdim=True)),
        ),
    ]
    for loss, options, value in expected:
        torch.testing.assert_close(loss(s, t, temperature=temperature, scale=False, **options), value)
        torch.testing.assert_close(loss(s, t, temperature=temperature, **options), value * temperature**2)


def test_adaptive_by_hand():
    # p = (.1, .2, .3, .4): .1 + .2 = .3 and .1 + .2 + .3 = .6 > .5, so the tail is the first two classes
    p, q = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).double(), torch.tensor([[0.4, 0.3, 0.2, 0.1]]).double()
    w = (0.1 + 0.3) / (0.3 + 0.1 + 0.1 + 0.3)
    assert head_share(q, p, 0.5).item() == pytest.approx(w)
    assert head_share(q, p, 0.2).item() == pytest.approx((0.1 + 0.1 + 0.3) / 0.8)
    assert head_share(q, p, 0.05).item() == 1
    assert head_share(p, p, 0.5).item() == 0.5
    q = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).double()
    w = (0.05 + 0.15) / 0.4
    expected = w * entropy(p, q) + (1 - w) * entropy(q, p)
    torch.testing.assert_close(adaptive_kl(q.log(), p.log()), expected)


def test_weights_of_the_adaptive_form_are_constants_for_the_gradient():
    s, t = logits(4, 6).requires_grad_(), logits(4, 6, seed=1)
    w = head_share(s.softmax(-1), t.softmax(-1), 0.5).detach()
    by_hand = w * losses.kl(s, t) + (1 - w) * losses.reverse_kl(s, t)
    own, expected = (torch.autograd.grad(v.sum(), s)[0] for v in (adaptive_kl(s, t), by_hand))
    torch.testing.assert_close(own, expected)


def test_the_head_always_holds_the_largest_class():
    share = head_share(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 1.0]]), 0.999999)
    assert share.item() == pytest.approx(0.5)


def test_limits():
    s, t = logits(5, 7), logits(5, 7, seed=1)
    for loss, limit in [(skew_kl, losses.kl), (skew_reverse_kl, losses.reverse_kl)]:
        near = [(loss(s, t, alpha=a) - limit(s, t)).abs().max().item() for a in (1e-3, 1e-5)]
        assert near[1] < near[0] / 20
    for beta, limit in [(0.0, losses.kl), (1.0, losses.reverse_kl)]:
        torch.testing.assert_close(continuous_js(s, t, beta=beta), limit(s, t))
        torch.testing.assert_close(continuous_js(s, t, beta=abs(beta - 1e-7)), limit(s, t), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(trl_js(s, t, beta=beta), limit(s, t))
        assert (trl_js(s, t, beta=abs(beta - 1e-7)) < 1e-4).all()  # the jump that it is published with
    torch.testing.assert_close(top_k_kl(s, t, k=7), losses.kl(s, t))
    torch.testing.assert_close(top_k_kl(s, t, k=1000), losses.kl(s, t))
    torch.testing.assert_close(top_k_kl(s, t, k=1), losses.cross_entropy(s, t.argmax(-1)))
    assert top_k_kl(s, t, k=1, renormalise_student=True).tolist() == [0.0] * 5


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_bounds_are_reached_by_disjoint_distributions(alpha):
    s, t = torch.tensor([[0.0, 0.0, -inf, -inf]]), torch.tensor([[-inf, -inf, 0.0, 0.0]])
    assert skew_kl(s, t, alpha=alpha).item() == pytest.approx(-math.log(alpha))
    assert skew_reverse_kl(s, t, alpha=alpha).item() == pytest.approx(-math.log(alpha))
    assert tvd(s, t).item() == pytest.approx(1)


def test_a_top_k_loss_is_least_where_the_student_has_everything_there():
    s, t = logits(5, 7), logits(5, 7, seed=1)
    mass = s.softmax(-1).gather(-1, t.topk(2).indices).sum(-1)
    split = top_k_kl(s, t, k=2) - top_k_kl(s, t, k=2, renormalise_student=True)
    torch.testing.assert_close(split, -mass.log())


def test_one_minus_total_variation_is_how_often_a_draft_is_accepted():
    s, t = logits(5, 7), logits(5, 7, seed=1)
    torch.testing.assert_close(1 - tvd(s, t), torch.minimum(s.softmax(-1), t.softmax(-1)).sum(-1))


@NAMED
@given(
    pair=pairs, temperature=st.sampled_from([0.05, 1.0, 50.0]), dtype=st.sampled_from([torch.bfloat16, torch.float32])
)
@settings(deadline=None, max_examples=40)
def test_never_negative_never_nan_in_any_precision(loss, pair, temperature, dtype):
    s, t = (torch.tensor([x]).to(dtype).requires_grad_() for x in pair)
    value = loss(s, t, temperature=temperature)
    assert value.dtype == torch.float32
    assert value.item() >= 0
    for gradient in torch.autograd.grad(value.sum(), (s, t)):
        assert gradient.isfinite().all()


@NAMED
def test_masks_weights_and_other_dimensions(loss):
    s, t = logits(2, 6, 3, 4), logits(2, 6, 3, 4, seed=1)
    mask, weight = logits(2, 3, 4, seed=2) > 0, logits(2, 3, 4, seed=3).abs()
    moved = loss(s.movedim(1, -1), t.movedim(1, -1))
    torch.testing.assert_close(loss(s, t, dim=1), moved)
    torch.testing.assert_close(loss(s, t, dim=1, mask=mask, weight=weight), torch.where(mask, moved * weight, 0))
    s.masked_fill_(~mask[:, None], math.nan).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(s, t, dim=1, mask=mask).sum(), s)
    assert gradient.isfinite().all()
    assert gradient.movedim(1, -1)[~mask].count_nonzero() == 0


@NAMED
def test_a_permutation_of_the_classes_or_a_constant_changes_nothing(loss):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    order = [3, 0, 5, 1, 2, 4]
    torch.testing.assert_close(loss(s[:, order] + 5, t[:, order] - 80), loss(s, t))


@pytest.mark.parametrize("loss", [f for f in ALL if f is not adaptive_kl], ids=lambda loss: loss.__name__)
def test_gradcheck(loss):
    s, t = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperature=1.7), (s, t))


@pytest.mark.parametrize(
    ("loss", "options", "sentence"),
    [
        (skew_kl, {"alpha": 0.0}, "skew_kl with alpha=0.0: needed is a number strictly between 0 and 1"),
        (skew_reverse_kl, {"alpha": 1.0}, "skew_reverse_kl with alpha=1.0"),
        (adaptive_kl, {"alpha": -1}, "adaptive_kl with alpha=-1"),
        (top_k_kl, {"k": 0}, "top_k_kl with k=0: needed is a whole number of at least 1"),
        (continuous_js, {"beta": 1.1}, "JS with beta=1.1: needed is a number from 0 to 1"),
        (trl_js, {"beta": -0.1}, "JS with beta=-0.1"),
    ],
)
def test_what_is_refused(loss, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        loss(logits(2, 3), logits(2, 3), **options)


@NAMED
def test_recipes_know_them_by_name(loss):
    assert losses.find(loss.__name__.replace("_", "-")) is loss
