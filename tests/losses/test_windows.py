"""Windows of a teacher's distribution and products of neighbours: limits, bounds, by hand, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.losses import kl
from limbeck.losses.across_tokenizers import by_rows
from limbeck.losses.windows import neighbours_apart, neighbours_in_spans, window, windowed_kl


def logits(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return tuple(2 * torch.randn(rows, classes, generator=g, dtype=torch.float64) for _ in range(2))


def bounds(low: float, high: float, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rows,), low, dtype=torch.float64), torch.full((rows,), high, dtype=torch.float64)


HOW = {"softness": 0.25, "floor": 0.0}


@pytest.mark.parametrize("clipped", ["bucket", "drop"])
def test_the_whole_window_is_forward_kl_exactly(clipped):
    z, w = logits(3, 6)
    w[0, 2], z[1, 3] = -math.inf, -1000.0
    z.requires_grad_()
    found, expected = windowed_kl(z, w, *bounds(0, 1), clipped=clipped), kl(z, w)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    for ours, theirs in zip(torch.autograd.grad(found.sum(), z), torch.autograd.grad(expected.sum(), z)):
        torch.testing.assert_close(ours, theirs)
    assert bool((window(w.softmax(-1), *bounds(0, 1), **HOW) == 1).all())
    single = window(w.float().softmax(-1), *(b.float() for b in bounds(0, 1)), **HOW)
    assert bool((single == 1).all())


def test_a_window_by_hand():
    """Masses 0.5, 0.3, 0.2: their middles lie at 0.25, 0.65 and 0.9, whatever the order of the classes."""
    p = torch.tensor([[0.3, 0.2, 0.5]], dtype=torch.float64)
    low, high = bounds(0.4, 0.8, 1)

    def odds(x):
        return math.log(x / (1 - x))

    def share(c):
        s = [1 / (1 + math.exp(-(odds(a) - odds(b)) / 0.25)) for a, b in ((c, 0.4), (0.8, c))]
        return s[0] * s[1]

    expected = torch.tensor([[share(0.65), share(0.9), share(0.25)]], dtype=torch.float64)
    torch.testing.assert_close(window(p, low, high, **HOW), expected)
    sharp = window(p, low, high, softness=1e-3, floor=0.0)
    torch.testing.assert_close(sharp, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64))
    label = window(p, low, high, label=torch.tensor([1]), softness=1e-3, floor=0.0)
    torch.testing.assert_close(label, torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64))
    assert torch.equal(window(p, low, high, label=torch.tensor([-100]), **HOW), window(p, low, high, **HOW))
    # 0.3 is kept and 0.6 is to be: of what is missing from 1, 0.7, everybody gets the same part
    lifted = window(p, low, high, softness=1e-3, floor=0.6)
    torch.testing.assert_close(lifted, torch.tensor([[1.0, 3 / 7, 3 / 7]], dtype=torch.float64))


@given(st.floats(0.01, 0.98), st.floats(0, 1), st.floats(0, 0.99), st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_it_is_a_divergence_below_kl_and_keeps_its_floor(low, share, floor, classes, seed):
    z, w = logits(3, classes, seed)
    edges = bounds(low, low + share * (0.99 - low))
    kept = window(w.softmax(-1), *edges, softness=0.25, floor=floor)
    assert bool(((kept >= 0) & (kept <= 1 + 1e-12)).all())
    assert bool(((kept * w.softmax(-1)).sum(-1) >= floor - 1e-12).all())
    values = windowed_kl(z, w, *edges, floor=floor)
    assert bool((values >= -1e-12).all())
    assert bool((values <= kl(z, w) + 1e-12).all())
    torch.testing.assert_close(
        windowed_kl(w, w, *edges, floor=floor), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_the_bucket_is_kl_of_joined_distributions():
    z, w = logits(3, 5)
    edges = bounds(0.2, 0.7)
    m = window(w.softmax(-1), *edges, softness=0.25, floor=0.3)
    joined = [torch.cat([m * x.softmax(-1), ((1 - m) * x.softmax(-1)).sum(-1, keepdim=True)], -1).log() for x in (z, w)]
    torch.testing.assert_close(windowed_kl(z, w, *edges, floor=0.3), kl(*joined))
    p, q = w.softmax(-1), z.softmax(-1)
    dropped = windowed_kl(z, w, *edges, floor=0.3, clipped="drop")
    torch.testing.assert_close(dropped, (m * p * (p / q).log()).sum(-1))


@pytest.mark.parametrize("clipped", ["bucket", "drop"])
def test_gradients_in_the_student_and_in_both_bounds_and_none_in_the_teacher(clipped):
    z, w = logits(3, 5, seed=3)
    given = (z.requires_grad_(), *(b.requires_grad_() for b in bounds(0.2, 0.8)))
    label = torch.tensor([0, -100, 3])
    options = {"label": label, "floor": 0.2, "clipped": clipped, "softness": 0.7}
    assert torch.autograd.gradcheck(lambda a, low, high: windowed_kl(a, w, low, high, **options), given)
    w.requires_grad_()
    value = windowed_kl(z, w, *given[1:], **options).sum()
    assert torch.autograd.grad(value, w, allow_unused=True) == (None,)


def test_half_precision_and_certain_teachers_stay_finite():
    w = torch.tensor([[60.0, 0, -60], [0, 0, 0]], dtype=torch.bfloat16)
    z = torch.zeros(2, 3, dtype=torch.bfloat16, requires_grad=True)
    low = torch.tensor([0.3, 1e-4], requires_grad=True)
    high = torch.tensor([0.4, 1 - 1e-4], requires_grad=True)
    value = windowed_kl(z, w, low, high, floor=0.5)
    assert value.dtype == torch.float32
    for each in (value, *torch.autograd.grad(value.sum(), (z, low, high))):
        assert each.isfinite().all()


def test_neighbours_by_hand_and_alike():
    p = [torch.tensor([[a, 1 - a]], dtype=torch.float64).log() for a in (0.5, 0.2, 0.9, 0.6)]
    # student 0.5 * 0.2, 0.5 * 0.8; teacher 0.9 * 0.6, 0.1 * 0.4
    gap = (0.1 - 0.54, 0.4 - 0.04)
    assert float(neighbours_apart(*p)) == pytest.approx(math.hypot(*gap))
    assert float(neighbours_apart(*p, distance="l1")) == pytest.approx(sum(map(abs, gap)))
    z, w = logits(3, 5)
    z.requires_grad_()
    same = neighbours_apart(z, w, z.detach(), w)
    assert torch.equal(same, torch.zeros_like(same))
    assert torch.equal(torch.autograd.grad(same.sum(), z)[0], torch.zeros_like(z))


@given(st.integers(1, 6), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_the_most_probable_of_either_side(top, seed):
    sides = [*logits(2, 6, seed), *logits(2, 6, seed + 100)]
    found = neighbours_apart(*sides, top=top)
    q0, q1, p0, p1 = (x.softmax(-1) for x in sides)
    for row in range(2):
        kept = {int(i) for x in sides for i in x[row].topk(top).indices}
        gaps = [q0[row, v] * q1[row, v] - p0[row, v] * p1[row, v] for v in kept]
        torch.testing.assert_close(found[row], torch.stack(gaps).square().sum().sqrt())
    if top == 6:
        torch.testing.assert_close(found, neighbours_apart(*sides))


def test_gradients_of_neighbours_reach_the_student_alone():
    sides = [x.requires_grad_() for x in (*logits(2, 4), *logits(2, 4, 9))]
    assert torch.autograd.gradcheck(lambda a, b: neighbours_apart(a, b, *sides[2:]), tuple(sides[:2]))
    value = neighbours_apart(*sides).sum()
    assert torch.autograd.grad(value, sides[2:], allow_unused=True) == (None, None)


def test_pieces_with_a_graph_are_the_whole():
    z, w = logits(7, 5)
    raw = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found = []
    for room in (2**20, 80):  # two rows at a time
        z = z.detach().requires_grad_()
        value = by_rows(
            lambda a, b, x: windowed_kl(a, b, x.sigmoid() / 2, 0.5 + x.sigmoid() / 2.1), z, w, each=(raw,), room=room
        )
        found.append((value, *torch.autograd.grad(value.sum(), (z, raw))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_spans_are_runs_cut_at_their_length():
    mask = torch.tensor([[1, 1, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
    expected = torch.tensor([[1, 1, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0]]).bool()
    assert torch.equal(neighbours_in_spans(mask, 3), expected)
    assert not neighbours_in_spans(mask, 1).any()
    everywhere = mask & torch.nn.functional.pad(mask, (0, 1))[:, 1:]
    assert torch.equal(neighbours_in_spans(mask, 99), everywhere)
