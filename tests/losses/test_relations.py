"""Relations of samples: against loops written from the papers, invariances, gradients, and the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from limbeck.errors import RecipeError
from limbeck.losses import find
from limbeck.losses.relations import pkt, rkd_angle, rkd_distance, similarity_preserving, unit

ALL = [rkd_distance, rkd_angle, similarity_preserving, pkt]
NO_ORIGIN = [rkd_distance, rkd_angle]  # a shift changes nothing


def features(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rotation(width, seed=7):
    return torch.linalg.qr(features(width, width, seed=seed)).Q


def huber(u, beta=1.0):
    return u * u / (2 * beta) if abs(u) < beta else abs(u) - beta / 2


def slow_distance(x, y):
    n = len(x)
    d = [[[math.dist(a, b) for b in z] for a in z] for z in (x.tolist(), y.tolist())]
    positive = [[v for row in m for v in row if v > 0] for m in d]
    means = [sum(p) / len(p) for p in positive]
    return sum(huber(d[0][i][j] / means[0] - d[1][i][j] / means[1]) for i in range(n) for j in range(n)) / n**2


def slow_angle(x, y):
    n = len(x)

    def cosine(z, i, j, k):
        a, b = z[j] - z[i], z[k] - z[i]
        if a.norm() == 0 or b.norm() == 0:
            return 0.0
        return float(a @ b / (a.norm() * b.norm()))

    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    return sum(huber(cosine(x, *t) - cosine(y, *t)) for t in triples) / n**3


def slow_similarity(x, y):
    n, rows = len(x), []
    for z in (x, y):
        g = [[float(z[i] @ z[j]) for j in range(n)] for i in range(n)]
        rows.append([[v / math.hypot(*row) for v in row] for row in g])
    return sum((rows[0][i][j] - rows[1][i][j]) ** 2 for i in range(n) for j in range(n)) / n**2


def slow_pkt(x, y, eps=1e-7):
    n, shares = len(x), []
    for z in (x, y):
        kernel = [[(1 + float(z[i] @ z[j] / (z[i].norm() * z[j].norm()))) / 2 for j in range(n)] for i in range(n)]
        shares.append([[v / sum(row) for v in row] for row in kernel])
    q, p = shares
    return sum(p[i][j] * math.log((p[i][j] + eps) / (q[i][j] + eps)) for i in range(n) for j in range(n)) / n**2


SLOW = {rkd_distance: slow_distance, rkd_angle: slow_angle, similarity_preserving: slow_similarity, pkt: slow_pkt}


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_each_is_its_formula_in_loops(loss, seed):
    x, y = features(6, 4, seed=seed), features(6, 9, seed=seed + 50)
    values = loss(x, y)
    assert values.shape == (6,)
    torch.testing.assert_close(values.mean().item(), SLOW[loss](x, y), rtol=1e-10, atol=1e-12)


def test_three_points_by_hand():
    # a right angle against a straight line: sides 3, 4, 5 (mean 4); 1, 1, 2 (mean 4/3)
    corner = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]]).double()
    line = torch.tensor([[0.0], [1.0], [-1.0]]).double()
    pairs = [huber(3 / 4 - 3 / 4), huber(4 / 4 - 3 / 4), huber(5 / 4 - 6 / 4)]
    assert rkd_distance(corner, line).mean().item() == pytest.approx(2 * sum(pairs) / 9)
    angles = [huber(0 - -1), huber(3 / 5 - 1), huber(4 / 5 - 1)]  # each of two orders; equal partners have cosine 1
    assert rkd_angle(corner, line).mean().item() == pytest.approx(2 * sum(angles) / 27)


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_equal_features_give_exactly_zero_in_any_precision(loss, dtype):
    x = features(8, 5, dtype=dtype).requires_grad_()
    values = loss(x, x.detach().clone())
    assert values.tolist() == [0.0] * 8
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("loss", ALL)
def test_rotating_and_scaling_either_side_changes_nothing(loss):
    x, y = features(7, 4), features(7, 5, seed=1)
    torch.testing.assert_close(loss(3.5 * x @ rotation(4), 0.01 * y @ rotation(5)), loss(x, y))
    wider = torch.cat([x, torch.zeros(7, 6).double()], 1)
    torch.testing.assert_close(loss(wider @ rotation(10), y), loss(x, y))


@pytest.mark.parametrize("loss", NO_ORIGIN)
def test_shifting_either_side_changes_nothing_even_far_away(loss):
    x, y = features(7, 4), features(7, 5, seed=1)
    torch.testing.assert_close(loss(x + 1e4, y - 1e4), loss(x, y), rtol=1e-8, atol=1e-10)
    near, far = (loss((x + shift).float(), y.float()) for shift in (0, 100))  # no squares that cancel, in fp32 either
    torch.testing.assert_close(near, far, rtol=1e-3, atol=1e-5)


def test_pkt_does_not_change_when_single_samples_are_scaled():
    x, y = features(7, 4), features(7, 5, seed=1)
    scales = torch.linspace(0.1, 9, 7).double().unsqueeze(1)
    torch.testing.assert_close(pkt(scales * x, y), pkt(x, y))


@pytest.mark.parametrize("loss", ALL)
def test_a_new_order_of_the_samples_reorders_the_values(loss):
    x, y = features(7, 4), features(7, 5, seed=1)
    order = torch.tensor([3, 0, 6, 2, 1, 5, 4])
    torch.testing.assert_close(loss(x[order], y[order]), loss(x, y)[order])


@pytest.mark.parametrize("loss", ALL)
def test_gradients_are_right_in_both_arguments(loss):
    x, y = features(4, 3).requires_grad_(), features(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, y))


@pytest.mark.parametrize("loss", NO_ORIGIN)
def test_a_common_shift_or_growth_of_the_student_has_no_gradient(loss):
    """Invariance, seen from the gradient: it is orthogonal to shifts and to scalings (through the student's own mean)."""
    x, y = features(6, 3).requires_grad_(), features(6, 3, seed=1)
    (gradient,) = torch.autograd.grad(loss(x, y).mean(), x)
    assert float(gradient.abs().max()) > 1e-3
    assert float(gradient.sum(0).abs().max()) < 1e-12
    assert abs(float((gradient * x.detach()).sum())) < 1e-12


@pytest.mark.parametrize("loss", ALL)
def test_maps_are_flattened(loss):
    x, y = features(5, 3, 2, 2), features(5, 4, seed=1)
    assert torch.equal(loss(x, y), loss(x.flatten(1), y))


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_samples_that_do_not_count_are_as_if_they_were_not_there(loss, bad):
    x, y = features(6, 3), features(6, 4, seed=1)
    mask = torch.tensor([True, False, True, True, False, True])
    broken_x, broken_y = (z.masked_fill(~mask[:, None], bad).requires_grad_() for z in (x, y))
    values = loss(broken_x, broken_y, mask=mask)
    torch.testing.assert_close(values, loss(x[mask], y[mask]))
    for gradient in torch.autograd.grad(values.sum(), (broken_x, broken_y)):
        assert gradient[~mask].abs().max() == 0
        assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", ALL)
def test_one_sample_has_no_relation(loss):
    x = features(1, 3).requires_grad_()
    values = loss(x, features(1, 4, seed=1))
    assert values.abs().max() < 1e-15
    assert torch.autograd.grad(values.sum(), x)[0].abs().max() < 1e-7


@pytest.mark.parametrize("loss", ALL)
def test_equal_points_and_zeros_have_finite_gradients(loss):
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [3.0, -1.0]]).double().requires_grad_()
    y = features(5, 3)
    values = loss(x, y)
    (gradient,) = torch.autograd.grad(values.sum(), x)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100  # not one over a tiny number
    same = torch.ones(4, 2).double().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(same, features(4, 3)).sum(), same)
    assert gradient.isfinite().all()


@given(
    n=st.integers(1, 6), widths=st.tuples(st.integers(1, 5), st.integers(1, 5)), scale=st.sampled_from([1e-4, 1, 1e3])
)
@settings(deadline=None, max_examples=40)
def test_never_negative_and_never_nan(n, widths, scale):
    x, y = (scale * features(n, w, seed=w, dtype=torch.float32) for w in widths)
    for loss in ALL:
        total = loss(x.requires_grad_(), y).mean()
        assert total.item() >= -1e-6
        assert torch.autograd.grad(total, x)[0].isfinite().all()


def test_a_batch_beyond_the_block_is_compared_in_runs():
    x, y = features(7, 3), features(7, 3, seed=1)
    runs = torch.cat([rkd_angle(x[:3], y[:3]), rkd_angle(x[3:6], y[3:6]), rkd_angle(x[6:], y[6:])])
    torch.testing.assert_close(rkd_angle(x, y, block=3), runs)
    assert torch.equal(rkd_angle(x, y, block=7), rkd_angle(x, y))


@pytest.mark.parametrize("loss", NO_ORIGIN)
def test_beta_leads_from_squares_to_absolute_differences(loss):
    x, y = features(5, 3), features(5, 3, seed=1)
    wide, narrow = loss(x, y, beta=1e6) * 2e6, loss(x, y, beta=1e-9)
    assert (narrow**2 <= wide + 1e-12).all()  # (mean |u|)^2 <= mean u^2
    torch.testing.assert_close(loss(x, y, beta=1e6), loss(x, y, beta=2e6) * 2)


@pytest.mark.parametrize("loss", ALL)
def test_autocast_does_not_lower_the_precision(loss):
    x, y = features(6, 5, dtype=torch.float32), features(6, 5, seed=1, dtype=torch.float32)
    expected = loss(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(x, y), expected)


def test_unit_vectors_of_zero_are_zero():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).requires_grad_()
    value = unit(x)
    torch.testing.assert_close(value, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.032, -0.024], [0.0, 0.0]]) * 1.0)


def test_recipes_find_them_by_name_and_mistakes_are_sentences():
    for name, loss in {"rkd-distance": rkd_distance, "similarity-preserving": similarity_preserving}.items():
        assert find(name) is loss
    with pytest.raises(RecipeError, match="the student gave 3, the teacher 4"):
        pkt(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(RecipeError, match=r"the mask \[2\]"):
        pkt(torch.zeros(3, 2), torch.zeros(3, 2), mask=torch.ones(2, dtype=torch.bool))
    with pytest.raises(RecipeError, match="block=0"):
        rkd_angle(torch.zeros(3, 2), torch.zeros(3, 2), block=0)


def test_a_student_that_minimises_the_distance_term_takes_the_teachers_shape():
    """Five points in the plane, moved by gradient descent, end as a rotated, scaled copy of the teacher's."""
    target = features(5, 2, seed=3)
    x = nn.Parameter(features(5, 2, seed=4))
    optimizer = torch.optim.LBFGS([x], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = rkd_distance(x, target).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    ours, theirs = torch.cdist(x.detach(), x.detach()), torch.cdist(target, target)
    torch.testing.assert_close(ours / ours.mean(), theirs / theirs.mean(), rtol=1e-2, atol=1e-3)
