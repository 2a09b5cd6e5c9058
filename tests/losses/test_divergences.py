import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from limbeck.errors import RecipeError
from limbeck.losses import jeffreys, js, kl, reverse_kl

ALL = [kl, reverse_kl, jeffreys, js]
inf, nan = math.inf, math.nan

numbers = st.floats(-30, 30, width=32)
pairs = st.integers(1, 6).flatmap(lambda c: st.tuples(*[st.lists(numbers, min_size=c, max_size=c)] * 2))


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def entropy(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) over the last dimension from probabilities, by scipy."""
    return torch.from_numpy(rel_entr(p.numpy(), q.numpy())).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_each_is_its_formula_on_probabilities(temperature):
    s, t = logits(5, 7), logits(5, 7, seed=1)
    q, p = (x.div(temperature).softmax(-1) for x in (s, t))
    m = 0.3 * p + 0.7 * q
    expected = {
        kl: entropy(p, q),
        reverse_kl: entropy(q, p),
        jeffreys: ((p - q) * (p.log() - q.log())).sum(-1),
        js: 0.3 * entropy(p, m) + 0.7 * entropy(q, m),
    }
    for loss, value in expected.items():
        options = {"beta": 0.3} if loss is js else {}
        plain = loss(s, t, temperature=temperature, scale=False, **options)
        torch.testing.assert_close(plain, value)
        torch.testing.assert_close(loss(s, t, temperature=temperature, **options), value * temperature**2)


def test_two_classes_by_hand():
    # p = (3/4, 1/4), q = (1/2, 1/2)
    t, s = torch.tensor([[math.log(3.0), 0.0]]).double(), torch.zeros(1, 2).double()
    assert kl(s, t).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert reverse_kl(s, t).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 8.0])
def test_a_distribution_is_exactly_zero_away_from_itself(loss, dtype, temperature):
    x = (logits(64, 11) * 5).to(dtype)
    values = loss(x, x.clone(), temperature=temperature)
    if loss is js:  # the mixture is a rounded sum of the two
        torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6 * temperature**2, rtol=0)
        assert (values >= 0).all()
    else:
        assert values.tolist() == [0.0] * 64
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@given(
    pairs, st.sampled_from([0.05, 0.5, 1.0, 4.0, 50.0]), st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
)
@settings(deadline=None, max_examples=150)
def test_never_negative_never_nan_in_any_precision(pair, temperature, dtype):
    s, t = (torch.tensor([x]).to(dtype).requires_grad_() for x in pair)
    for loss in ALL:
        value = loss(s, t, temperature=temperature)
        assert value.item() >= 0
        assert value.isfinite().all()
        for gradient in torch.autograd.grad(value.sum(), (s, t)):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", ALL)
def test_a_constant_added_to_all_logits_changes_nothing(loss):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    shifts = torch.tensor([[1000.0], [-50.0], [0.5], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(loss(s + shifts, t - 3 * shifts, temperature=2), loss(s, t, temperature=2))


@pytest.mark.parametrize("loss", ALL)
def test_the_order_of_classes_changes_nothing(loss):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    order = [3, 0, 5, 1, 2, 4]
    torch.testing.assert_close(loss(s[:, order], t[:, order]), loss(s, t))


@pytest.mark.parametrize("loss", [kl, reverse_kl, jeffreys, js])
def test_at_high_temperature_it_is_the_distance_of_centred_logits(loss):
    # KL is (1/2) sum of d^2 / C to second order in d = (centred difference) / T, both ways round; Jeffreys is the sum
    # of two, and the Jensen-Shannon divergence beta (1 - beta) times one.
    s, t = logits(6, 9), logits(6, 9, seed=1)
    centred = (t - t.mean(-1, keepdim=True)) - (s - s.mean(-1, keepdim=True))
    limit = centred.square().sum(-1) / (2 * 9)
    factor = {kl: 1.0, reverse_kl: 1.0, jeffreys: 2.0, js: 0.25}[loss]
    at = {T: (loss(s, t, temperature=T) / (factor * limit) - 1).abs().max().item() for T in (1e2, 1e3, 1e4)}
    assert at[1e4] < 1e-3
    assert at[1e3] < at[1e2] / 5  # the error falls like 1 / T
    assert at[1e4] < at[1e3] / 5


def test_gradient_of_kl_is_temperature_times_the_difference_of_probabilities():
    s, t = logits(5, 7).requires_grad_(), logits(5, 7, seed=1)
    (gradient,) = torch.autograd.grad(kl(s, t, temperature=3.0).sum(), s)
    torch.testing.assert_close(gradient, 3.0 * ((s / 3).softmax(-1) - (t / 3).softmax(-1)))


@pytest.mark.parametrize("loss", ALL)
def test_gradients_flow_into_both_arguments_and_are_right(loss):
    s, t = logits(3, 4).requires_grad_(), logits(3, 4, seed=1).requires_grad_()
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64).requires_grad_()
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperature=1.7), (s, t))
    assert torch.autograd.gradcheck(lambda a, b, w: loss(a, b, mask=mask, weight=w), (s, t, weight))
    assert torch.autograd.gradgradcheck(lambda a, b: loss(a, b, temperature=1.7), (s, t))


@pytest.mark.parametrize("loss", ALL)
def test_classes_in_another_dimension_give_one_value_per_pixel(loss):
    s, t = logits(2, 5, 3, 4), logits(2, 5, 3, 4, seed=1)
    values = loss(s, t, dim=1, temperature=2)
    assert values.shape == (2, 3, 4)
    torch.testing.assert_close(values, loss(s.movedim(1, -1), t.movedim(1, -1), temperature=2))


def test_reverse_is_forward_with_the_arguments_exchanged_and_jeffreys_their_sum():
    s, t = logits(4, 6), logits(4, 6, seed=1)
    assert torch.equal(reverse_kl(s, t, temperature=2), kl(t, s, temperature=2))
    torch.testing.assert_close(jeffreys(s, t), kl(s, t) + reverse_kl(s, t))
    torch.testing.assert_close(jeffreys(s, t), jeffreys(t, s))


def test_js_is_symmetric_and_bounded_by_the_entropy_of_its_coin():
    s, t = logits(4, 6), logits(4, 6, seed=1)
    torch.testing.assert_close(js(s, t), js(t, s))
    torch.testing.assert_close(js(s, t, beta=0.2), js(t, s, beta=0.8))
    disjoint = torch.tensor([[0.0, -inf]]).double(), torch.tensor([[-inf, 0.0]]).double()
    coin = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))
    assert js(*disjoint, beta=0.2).item() == pytest.approx(coin, rel=1e-12)
    assert js(*disjoint).item() == pytest.approx(math.log(2), rel=1e-12)


def test_js_has_forward_and_reverse_divergence_as_its_limits():
    s, t = logits(4, 6), logits(4, 6, seed=1)
    small = 1e-6
    torch.testing.assert_close(js(s, t, beta=small) / small, kl(s, t), rtol=1e-3, atol=0)
    torch.testing.assert_close(js(s, t, beta=1 - small) / small, reverse_kl(s, t), rtol=1e-3, atol=0)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, nan])
def test_js_refuses_a_beta_at_which_it_is_zero(beta):
    with pytest.raises(RecipeError, match=r"strictly between 0 and 1.*reverse-kl"):
        js(torch.zeros(1, 2), torch.zeros(1, 2), beta=beta)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("low", [-inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0])
def test_a_class_that_both_rule_out_is_as_if_it_were_not_there(loss, low, temperature):
    s, t = logits(3, 4).float(), logits(3, 4, seed=1).float()
    ruled_out = torch.full((3, 1), low)
    wide_s, wide_t = (
        torch.cat([x, end], 1).requires_grad_() for x, end in ((s, ruled_out), (t, torch.full((3, 1), -inf)))
    )
    short_s, short_t = s.clone().requires_grad_(), t.clone().requires_grad_()
    value, short = loss(wide_s, wide_t, temperature=temperature), loss(short_s, short_t, temperature=temperature)
    torch.testing.assert_close(value, short)
    for wide, narrow in zip(
        torch.autograd.grad(value.sum(), (wide_s, wide_t)), torch.autograd.grad(short.sum(), (short_s, short_t))
    ):
        torch.testing.assert_close(wide[:, :4], narrow)
        assert wide[:, 4].tolist() == [0.0] * 3


def test_a_class_that_only_the_teacher_rules_out_still_teaches():
    s = torch.tensor([[0.0, 0.0]]).double().requires_grad_()
    t = torch.tensor([[0.0, -inf]]).double()
    value = kl(s, t)
    assert value.item() == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(value, s)
    assert gradient.tolist() == [[-0.5, 0.5]]
    assert reverse_kl(s, t).item() == inf  # the student allows what the teacher rules out
    (gradient,) = torch.autograd.grad(js(s, t), s)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", ALL)
def test_one_class_has_nothing_to_say(loss):
    s = torch.tensor([[3.0], [-inf], [1e4]])[[0, 2]].requires_grad_()
    value = loss(s, torch.tensor([[-7.0], [0.0]]))
    assert value.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(value.sum(), s)[0].tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_masked_entries_are_exactly_zero_with_exactly_zero_gradient(loss, bad):
    s, t = logits(2, 3, 4).requires_grad_(), logits(2, 3, 4, seed=1).requires_grad_()
    mask = torch.tensor([[True, False, True], [False, False, True]])
    broken = ~mask.unsqueeze(-1).expand_as(s)
    bad_s, bad_t = (x.detach().masked_fill(broken, bad).requires_grad_() for x in (s, t))
    bad_weight = torch.ones(2, 3).double().masked_fill(~mask, bad).requires_grad_()
    value, clean = loss(bad_s, bad_t, mask=mask, weight=bad_weight), loss(s, t)
    assert torch.equal(value, clean.masked_fill(~mask, 0.0))
    wanted = torch.autograd.grad((clean * mask).sum(), (s, t))
    got = torch.autograd.grad(value.sum(), (bad_s, bad_t, bad_weight))
    for gradient, right in zip(got, wanted):
        assert torch.equal(gradient, right.masked_fill(broken, 0.0))
    assert got[2][~mask].tolist() == [0.0] * 3


@pytest.mark.parametrize("loss", ALL)
def test_everything_masked_is_zero_and_not_nan(loss):
    s = torch.full((2, 3), nan, requires_grad=True)
    value = loss(s, torch.full((2, 3), inf), mask=torch.zeros(2, dtype=torch.bool))
    assert value.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(value.sum(), s)[0].tolist() == [[0.0] * 3] * 2


def test_a_weight_or_mask_per_sample_goes_with_values_per_token():
    s, t = logits(2, 3, 4), logits(2, 3, 4, seed=1)
    weight, mask = torch.tensor([0.5, 3.0]), torch.tensor([True, False])
    torch.testing.assert_close(kl(s, t, weight=weight), kl(s, t) * weight.double()[:, None])
    assert torch.equal(kl(s, t, mask=mask)[1], torch.zeros(3).double())
    assert torch.equal(kl(s, t, mask=mask)[0], kl(s, t)[0])


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3)
    with pytest.raises(RecipeError, match=r"\[2, 3\], the teacher's \[2, 4\]"):
        kl(x, torch.zeros(2, 4))
    with pytest.raises(RecipeError, match=r"student's tensor has shape \[2, 1\]"):
        kl(torch.zeros(2, 1), x)  # would broadcast
    with pytest.raises(RecipeError, match="temperature 0: needed is a number above 0"):
        kl(x, x, temperature=0)
    with pytest.raises(RecipeError, match=r"the mask of a loss has shape \[3\]; needed is \[2\]"):
        kl(x, x, mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(RecipeError, match="the weight of a loss"):
        kl(x, x, weight=torch.ones(2, 3))


@pytest.mark.parametrize("loss", [kl, reverse_kl, jeffreys, js])
def test_autocast_does_not_make_them_coarse(loss):
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(16, 100, generator=g)
    student = (teacher + 0.05 * torch.randn(16, 100, generator=g)).requires_grad_()
    plain = loss(student, teacher, temperature=4.0)
    (expected,) = torch.autograd.grad(plain.sum(), student)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher, temperature=4.0)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert torch.equal(found, plain)
    assert torch.equal(gradient, expected)
