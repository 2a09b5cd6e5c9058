"""OFA's loss: limit cases of the exponent, closed forms, gradients, edges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find, kl, soft_cross_entropy
from limbeck.losses.ofa import ofa, sharpened


def some(batch: int = 4, classes: int = 5, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(batch, classes, dtype=torch.float64, generator=g) for _ in range(2))
    return s, t, torch.randint(0, classes, (batch,), generator=g)


@given(
    batch=st.integers(1, 4),
    classes=st.integers(1, 6),
    exponent=st.floats(0.2, 4),
    temperature=st.floats(0.3, 6),
    seed=st.integers(0, 5),
)
def test_it_is_the_papers_double_sum(batch, classes, exponent, temperature, seed):
    s, t, y = some(batch, classes, seed)
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    m = torch.nn.functional.one_hot(y, classes)
    expected = -(((p + m) ** exponent - m) * q.log()).sum(-1)
    torch.testing.assert_close(ofa(s, t, target=y, exponent=exponent, temperature=temperature), expected)


def test_with_exponent_one_it_is_soft_cross_entropy_and_its_gradient_that_of_kd():
    s, t, y = some()
    s.requires_grad_()
    torch.testing.assert_close(ofa(s, t, target=y), soft_cross_entropy(s, t.softmax(-1)))
    (found,) = torch.autograd.grad(ofa(s, t, target=y).sum(), s)
    (expected,) = torch.autograd.grad(kl(s, t, temperature=1.0).sum(), s)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, s.softmax(-1) - t.softmax(-1))


def test_exponent_two_in_closed_form():
    _, t, y = some()
    p = t.softmax(-1)
    share = sharpened(t, y, exponent=2.0)
    for row, right in enumerate(y.tolist()):
        for c in range(5):
            own = p[row, c]
            assert share[row, c].item() == pytest.approx((2 * own + own**2 if c == right else own**2).item())


@given(exponent=st.floats(1.01, 5), seed=st.integers(0, 5))
def test_above_one_the_target_gains_and_all_others_lose(exponent, seed):
    _, t, y = some(seed=seed)
    p, share = t.softmax(-1), sharpened(t, y, exponent=exponent)
    right = torch.nn.functional.one_hot(y, 5).bool()
    assert (share[right] > p[right]).all()
    assert (share[~right] < p[~right]).all()


def test_the_gradient_is_the_total_share_times_q_less_the_share():
    """The factors do not sum to 1, and that total stands before q."""
    s, t, y = some()
    s.requires_grad_()
    share = sharpened(t, y, exponent=1.7, temperature=2.0)
    (found,) = torch.autograd.grad(ofa(s, t, target=y, exponent=1.7, temperature=2.0).sum(), s)
    q = (s / 2.0).softmax(-1)
    torch.testing.assert_close(found, (share.sum(-1, keepdim=True) * q - share) / 2.0)


def test_gradcheck_in_both_arguments():
    s, t, y = some(2, 3)
    s.requires_grad_()
    t.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: ofa(a, b, target=y, exponent=1.5, temperature=2.0), (s, t))


def test_soft_labels_name_their_largest_class():
    s, t, y = some()
    soft = 0.1 + 0.5 * torch.nn.functional.one_hot(y, 5)
    torch.testing.assert_close(ofa(s, t, target=soft, exponent=1.5), ofa(s, t, target=y, exponent=1.5))


def test_one_class_has_nothing_to_say():
    assert (
        ofa(torch.randn(3, 1), torch.randn(3, 1), target=torch.zeros(3, dtype=torch.int64), exponent=1.4).tolist()
        == [0.0] * 3
    )


def test_infinite_logits_masks_and_weights():
    s, t, y = some()
    s[0, 1], t[0, 1], y[0] = -math.inf, -math.inf, 0
    s[2] = math.nan
    s.requires_grad_()
    mask, weight = torch.tensor([True, True, False, True]), torch.tensor([1.0, 3.0, 9.0, 0.0])
    found = ofa(s, t, target=y, exponent=1.5, mask=mask, weight=weight)
    kept = ofa(s[1:2].detach(), t[1:2], target=y[1:2], exponent=1.5)
    assert found[0].isfinite()
    torch.testing.assert_close(found[1:], torch.tensor([3 * kept.item(), 0.0, 0.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.sum(), s)
    assert gradient.isfinite().all()
    assert gradient[2].tolist() == [0.0] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype):
    s, t, y = some()
    found = ofa(s.to(dtype), t.to(dtype), target=y, exponent=1.5)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ofa(s.to(dtype).float(), t.to(dtype).float(), target=y, exponent=1.5))


def test_what_does_not_fit_is_refused():
    s, t, y = some()
    for wrong in ({"exponent": 0.0}, {"temperature": -1.0}):
        with pytest.raises(RecipeError, match="above 0"):
            ofa(s, t, target=y, **wrong)
    with pytest.raises(RecipeError, match="equal shapes"):
        ofa(s, t[:, :3], target=y)
    assert find("ofa") is ofa
