"""The two halves of a divergence: their formulas, that they make up the whole, gradients, edges and masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find, kl
from limbeck.losses.nontarget import (
    against_the_rest,
    nontarget_cross_entropy,
    nontarget_kl,
    target_cross_entropy,
    target_kl,
    without_target,
)

ALL = [target_kl, nontarget_kl, nontarget_cross_entropy, target_cross_entropy]
WITH_TEMPERATURE = ALL[:3]
inf, nan = math.inf, math.nan


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def case(batch: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return logits(batch, classes), logits(batch, classes, seed=1), torch.arange(batch) % classes


def test_recipes_know_them_by_name():
    assert [find(f.__name__.replace("_", "-")) for f in ALL] == ALL


@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_each_is_its_formula_on_probabilities(temperature):
    s, t, y = case()
    right = torch.nn.functional.one_hot(y, 5).bool()
    q, p = ((x / temperature).softmax(-1) for x in (s, t))
    b_q, b_p = (torch.stack([x[right], 1 - x[right]], 1) for x in (q, p))
    o_q, o_p = (x[~right].view(6, 4) / (1 - x[right])[:, None] for x in (q, p))
    torch.testing.assert_close(o_p.sum(1), torch.ones(6).double())
    expected = {
        target_kl: (b_p * (b_p / b_q).log()).sum(1),
        nontarget_kl: (o_p * (o_p / o_q).log()).sum(1),
        nontarget_cross_entropy: -(o_p * o_q.log()).sum(1),
    }
    for loss, value in expected.items():
        torch.testing.assert_close(loss(s, t, y, temperature=temperature, scale=False), value)
        torch.testing.assert_close(loss(s, t, y, temperature=temperature), temperature**2 * value)
    if temperature == 1:
        torch.testing.assert_close(target_cross_entropy(s, t, y), -p[right] * q[right].log())


@given(
    st.lists(st.tuples(st.floats(-15, 15), st.floats(-15, 15)), min_size=1, max_size=7),
    st.integers(0, 6),
    st.sampled_from([0.5, 1.0, 4.0, 20.0]),
)
@settings(deadline=None, max_examples=150)
def test_the_halves_make_up_the_whole(pairs, label, temperature):
    """KL = target half + (1 - p_y) * the other half, so alpha = 1 and beta = 1 - p_y per sample is plain KD."""
    s, t = (torch.tensor([side]).double() for side in zip(*pairs))
    y = torch.tensor([label % len(pairs)])
    rest = 1 - (t / temperature).softmax(-1).gather(1, y[:, None])[:, 0]
    whole = target_kl(s, t, y, temperature=temperature) + nontarget_kl(s, t, y, temperature=temperature, weight=rest)
    torch.testing.assert_close(whole, kl(s, t, temperature=temperature), rtol=1e-9, atol=1e-9 * temperature**2)


def test_a_sure_teacher_loses_nothing_to_rounding():
    """At a margin of 60 the rest has 1e-26: 1 - p_y is 0 even in fp64, its logarithm is not."""
    sure = torch.tensor([[60.0, 1.0, 0.0]])
    y = torch.tensor([0])
    assert float(1 - sure.double().softmax(-1)[0, 0]) == 0.0
    s = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    two = torch.tensor([math.e, 1.0]).double() / (math.e + 1)
    expected = (two * (2 * two).log()).sum()
    value = nontarget_kl(s, sure, y)
    torch.testing.assert_close(value.double()[0], expected)
    assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()
    other_way = torch.tensor([[-60.0, 0.0, 0.0]], requires_grad=True)
    gradient = torch.autograd.grad(target_kl(other_way, sure, y).sum(), other_way)[0]
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.5, 0.5]]))
    assert against_the_rest(sure, y).tolist() == [[60.0, pytest.approx(math.log(1 + math.e))]]


@pytest.mark.parametrize("loss", ALL)
def test_gradients_flow_into_both_arguments_and_are_right(loss):
    s, t, y = case(3, 4)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64).requires_grad_()
    mask = torch.tensor([True, False, True])
    options = {"temperature": 1.7} if loss in WITH_TEMPERATURE else {}
    s, t = s.requires_grad_(), t.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y, **options), (s, t))
    assert torch.autograd.gradcheck(lambda a, b, w: loss(a, b, y, mask=mask, weight=w), (s, t, weight))


def test_closed_gradients():
    s, t, y = case()
    s.requires_grad_()
    right = torch.nn.functional.one_hot(y, 5).double()
    p, q = t.softmax(-1), s.softmax(-1)
    (gradient,) = torch.autograd.grad(target_cross_entropy(s, t, y).sum(), s)
    torch.testing.assert_close(gradient, (p * right).sum(1, keepdim=True) * (q - right))
    other_p, other_q = (without_target(x / 3, y).softmax(-1) for x in (t, s))
    for loss in (nontarget_kl, nontarget_cross_entropy):  # they differ by the entropy of the teacher's
        (gradient,) = torch.autograd.grad(loss(s, t, y, temperature=3.0).sum(), s)
        torch.testing.assert_close(gradient, 3 * (other_q - other_p))
        assert gradient[right.bool()].tolist() == [0.0] * 6


def test_the_half_about_the_others_does_not_see_the_right_logit():
    s, t, y = case()
    moved = s + 100 * torch.nn.functional.one_hot(y, 5)
    torch.testing.assert_close(nontarget_kl(moved, t, y), nontarget_kl(s, t, y))
    torch.testing.assert_close(nontarget_kl(s + 7, t - 3, y, temperature=2), nontarget_kl(s, t, y, temperature=2))


def test_two_classes_have_no_others_to_compare_and_one_class_has_nothing():
    s, t, y = case(4, 2)
    assert nontarget_kl(s, t, y).tolist() == [0.0] * 4
    torch.testing.assert_close(nontarget_cross_entropy(s, t, y), torch.zeros(4).double())
    torch.testing.assert_close(target_kl(s, t, y), kl(s, t))
    one, zero = torch.tensor([[3.0], [-2.0]], requires_grad=True), torch.zeros(2, dtype=torch.int64)
    for loss in ALL:
        value = loss(one, one.detach() + 1, zero)
        assert value.tolist() == [0.0, 0.0]
        assert torch.autograd.grad(value.sum(), one)[0].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("loss", ALL)
def test_a_class_that_both_rule_out_is_as_if_it_were_not_there(loss):
    s, t, y = case(4, 4)
    end = torch.full((4, 1), -inf).double()
    wide_s, wide_t = (torch.cat([x, end], 1).requires_grad_() for x in (s, t))
    short = s.clone().requires_grad_()
    value, expected = loss(wide_s, wide_t, y), loss(short, t, y)
    torch.testing.assert_close(value, expected)
    wide, narrow = torch.autograd.grad(value.sum(), wide_s)[0], torch.autograd.grad(expected.sum(), short)[0]
    torch.testing.assert_close(wide[:, :4], narrow)
    assert wide[:, 4].tolist() == [0.0] * 4


@pytest.mark.parametrize("loss", ALL)
def test_where_all_others_are_ruled_out_nothing_is_nan(loss):
    only = torch.tensor([[0.5, -inf, -inf]]).double().requires_grad_()
    y = torch.tensor([0])
    value = loss(only, only.detach() + 2, y)
    assert value.tolist() == [0.0]
    assert torch.autograd.grad(value.sum(), only)[0].tolist() == [[0.0] * 3]


@pytest.mark.parametrize("loss", ALL)
def test_classes_in_another_dimension_give_one_value_per_pixel(loss):
    s, t = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    y = torch.randint(0, 5, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    values = loss(s, t, y, dim=1)
    assert values.shape == (2, 3, 4)
    torch.testing.assert_close(values, loss(s.movedim(1, -1), t.movedim(1, -1), y))
    flat = loss(s.movedim(1, -1).reshape(-1, 5), t.movedim(1, -1).reshape(-1, 5), y.flatten())
    torch.testing.assert_close(values.flatten(), flat)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_masked_and_unlabelled_entries_are_exactly_zero(loss, bad):
    s, t = logits(2, 3, 4).requires_grad_(), logits(2, 3, 4, seed=1)
    y = torch.tensor([[0, -100, 2], [-1, 1, 3]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    counts = mask & (y >= 0)
    broken = ~counts.unsqueeze(-1).expand_as(s)
    bad_s, bad_t = (x.detach().masked_fill(broken, bad).requires_grad_() for x in (s, t))
    value, clean = loss(bad_s, bad_t, y, mask=mask), loss(s, t, y.clamp(min=0))
    assert torch.equal(value, clean.masked_fill(~counts, 0.0))
    got, wanted = torch.autograd.grad(value.sum(), bad_s)[0], torch.autograd.grad((clean * counts).sum(), s)[0]
    assert torch.equal(got, wanted.masked_fill(broken, 0.0))
    everything = loss(bad_s, bad_t, y, mask=torch.zeros(2, dtype=torch.bool))
    assert everything.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_single(loss, dtype):
    s, t, y = case()
    s, t = s.to(dtype), t.to(dtype)
    value = loss(s, t, y)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(s.double(), t.double(), y).float(), rtol=1e-5, atol=1e-5)
    if loss in (target_kl, nontarget_kl):
        assert loss(s, s.clone(), y, temperature=0.05).tolist() == [0.0] * 6


def test_mistakes_are_answered_in_sentences():
    s, t, y = case()
    with pytest.raises(RecipeError, match=r"labels are int64 \[5\], logits \[6, 5\].*of shape \[6\]"):
        target_kl(s, t, y[:5])
    with pytest.raises(RecipeError, match=r"labels are float32 \[6\]"):
        nontarget_kl(s, t, y.float())
    for loss in WITH_TEMPERATURE:
        with pytest.raises(RecipeError, match="temperature 0: needed is a number above 0"):
            loss(s, t, y, temperature=0)
    with pytest.raises(RecipeError, match=r"student's tensor has shape \[6, 5\], the teacher's \[6, 4\]"):
        target_cross_entropy(s, t[:, :4], y)
    with pytest.raises((IndexError, RuntimeError)):
        nontarget_kl(s, t, y + 3)
