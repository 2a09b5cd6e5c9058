"""The review against the paper's formula written out, its gates, shapes, and which level learns from which."""

import pytest
import torch
import torch.nn.functional as F

from limbeck.bridges.review import Fusion, Review


def resized(x, size):
    return F.interpolate(x, size, mode="nearest")


def slowly(level: Fusion, own, deeper=None):
    """ABF with one convolution over both maps side by side, as the paper draws it."""
    x = level.inner(own)
    if deeper is not None:
        y = resized(deeper, x.shape[2:])
        weight = torch.cat([level.gate_of_own.weight, level.gate_of_deeper.weight], 1)
        gates = torch.sigmoid(F.conv2d(torch.cat([x, y], 1), weight, level.gate_of_own.bias))
        x = x * gates[:, 0].unsqueeze(1) + y * gates[:, 1].unsqueeze(1)
    x = resized(x, level.size)
    return level.outer(x), x


SHAPES = [(3, 8, 8), (5, 4, 4), (6, 2, 2), (6, 1, 1)]
TARGETS = [(4, 16, 16), (7, 8, 8), (9, 2, 2), (9, 1, 1)]


def maps(batch=3):
    return [torch.randn(batch, *shape, dtype=torch.float64) for shape in SHAPES]


def test_it_is_the_papers_chain_from_the_deepest_up():
    review, own = Review(SHAPES, TARGETS, width=5).double(), maps()
    expected, deeper = [], None
    for level, x in zip(reversed(review.levels), reversed(own)):
        out, deeper = slowly(level, x, deeper)
        expected.insert(0, out)
    found = review(own)
    for a, b, shape in zip(found, expected, TARGETS, strict=True):
        torch.testing.assert_close(a, b)
        assert a.shape == (3, *shape)


def test_a_level_learns_from_its_own_map_and_the_deeper_ones_only():
    review, own = Review(SHAPES, TARGETS).double(), [x.requires_grad_() for x in maps()]
    for level, out in enumerate(review(own)):
        found = torch.autograd.grad(out.square().sum() + out.sum(), own, retain_graph=True, allow_unused=True)
        assert [g is not None for g in found] == [False] * level + [True] * (4 - level)


def test_closed_gates_leave_a_level_alone_and_open_ones_add_both():
    level = Fusion(3, 4, (5, 8, 8), deepest=False).double().eval()
    own, deeper = torch.randn(2, 3, 8, 8).double(), torch.randn(2, 4, 2, 2).double()
    x, y = level.inner(own), resized(deeper, (8, 8))
    for conv in (level.gate_of_own, level.gate_of_deeper):
        torch.nn.init.zeros_(conv.weight)
    for gates, expected in [((40.0, -40.0), x), ((-40.0, 40.0), y), ((40.0, 40.0), x + y), ((0.0, 0.0), (x + y) / 2)]:
        level.gate_of_own.bias.data = torch.tensor(gates).double()
        torch.testing.assert_close(level(own, deeper)[1], expected)


def test_one_pixel_sees_the_middle_of_the_kernel():
    """A 3x3 kernel with padding on a 1x1 map multiplies zeros with eight of its nine entries."""
    level, x = Fusion(3, 4, (5, 1, 1), deepest=True).double().eval(), torch.randn(2, 3, 1, 1).double()
    assert level.outer[0].weight.shape[2:] == (1, 1)
    wide = torch.randn(5, 4, 3, 3).double()
    wide[:, :, 1:2, 1:2] = level.outer[0].weight
    torch.testing.assert_close(level.outer[1](F.conv2d(level.inner(x), wide, padding=1)), level(x)[0])


@pytest.mark.parametrize(("width", "expected"), [(512, 6), (4, 4)])
def test_the_width_is_at_most_that_of_the_deepest_level(width, expected):
    review = Review(SHAPES, TARGETS, width=width)
    assert {level.inner[0].out_channels for level in review.levels} == {expected}
    assert review.words() == "a review of 4 levels"
    assert not review.ships
