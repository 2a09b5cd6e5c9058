"""Augmentation by numbers: what each does exactly, nothing where they are 0, how they are drawn, what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from limbeck.diffusion.augmenting import Augmentation, moved
from limbeck.errors import RecipeError

KINDS = ["mirror", "turn", "zoom", "shift_x", "shift_y"]


def pictures(sides=(8, 8), dtype=torch.float64):
    return torch.randn(3, 2, *sides, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def points(dims=2):
    return torch.randn(3, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def every(value):
    return torch.full((3,), value, dtype=torch.float64)


@pytest.mark.parametrize("x", [pictures(), pictures((4, 6), torch.float32), points(), points(5)])
def test_zeros_leave_everything_as_it_is_to_the_bit(x):
    assert torch.equal(moved(x, {kind: every(0.0) for kind in KINDS}), x)
    assert moved(x, {}) is x


def test_a_mirror_exchanges_left_and_right():
    for x in (pictures(), pictures((5, 8))):
        torch.testing.assert_close(moved(x, {"mirror": every(1.0)}), x.flip(-1))
    x = points(3)
    torch.testing.assert_close(moved(x, {"mirror": every(1.0)}), x * torch.tensor([-1.0, 1, 1]))


def test_quarter_and_half_turns_are_those_of_the_grid():
    """x to the right and y down: a positive turn takes x to y, which looks clockwise."""
    x = pictures()
    torch.testing.assert_close(moved(x, {"turn": every(0.25)}), x.rot90(-1, (2, 3)))
    torch.testing.assert_close(moved(x, {"turn": every(-0.25)}), x.rot90(1, (2, 3)))
    wide = pictures((4, 6))
    torch.testing.assert_close(moved(wide, {"turn": every(0.5)}), wide.flip((2, 3)))
    a, b = points().unbind(1)
    torch.testing.assert_close(moved(points(), {"turn": every(0.25)}), torch.stack([-b, a], 1))


def test_shifts_go_by_shares_of_the_sides_and_are_reflected_at_the_edge():
    x = pictures((4, 8))
    right = moved(x, {"shift_x": every(2 / 8)})
    torch.testing.assert_close(right[..., 2:], x[..., :-2])
    torch.testing.assert_close(right[..., :2], x[..., :2].flip(-1))
    down = moved(x, {"shift_y": every(1 / 4)})
    torch.testing.assert_close(down[:, :, 1:], x[:, :, :-1])
    half = moved(x, {"shift_x": every(0.5 / 8)})
    torch.testing.assert_close(half[..., 1:], (x[..., 1:] + x[..., :-1]) / 2)
    torch.testing.assert_close(moved(points(), {"shift_y": every(0.3)}), points() + torch.tensor([0.0, 0.3]))


def test_a_zoom_enlarges_about_the_middle():
    """Of a slope along x, at half the steepness: where pixels are read inside the picture, bilinear is exact."""
    slope = (torch.arange(8, dtype=torch.float64) - 3.5).expand(3, 1, 4, 8)
    torch.testing.assert_close(moved(slope, {"zoom": every(1.0)}), slope / 2)
    smaller = moved(slope, {"zoom": every(-1.0)})
    torch.testing.assert_close(smaller[..., 2:6], 2 * slope[..., 2:6])
    torch.testing.assert_close(moved(points(), {"zoom": every(2.0)}), 4 * points())


@given(turn=st.floats(-0.5, 0.5), zoom=st.floats(-1, 1), mirror=st.sampled_from([0.0, 1.0]), right=st.floats(-1, 1))
def test_of_points_lengths_from_the_shifted_middle_are_zoomed_and_nothing_else(turn, zoom, mirror, right):
    numbers = {"turn": every(turn), "zoom": every(zoom), "mirror": every(mirror), "shift_x": every(right)}
    x = points()
    found = moved(x, numbers)
    moved_to = found - torch.tensor([right, 0.0], dtype=torch.float64)
    torch.testing.assert_close(moved_to.norm(dim=1), 2**zoom * x.norm(dim=1))
    angle = torch.atan2(moved_to[:, 1], moved_to[:, 0])
    first = torch.atan2(x[:, 1], x[:, 0])
    first = math.pi - first if mirror else first
    torch.testing.assert_close((angle - first - 2 * math.pi * turn).cos(), torch.ones(3, dtype=torch.float64))


def test_each_sample_is_moved_by_its_own_numbers():
    x = pictures()
    numbers = {"mirror": torch.tensor([0.0, 1.0, 0.0]), "turn": torch.tensor([0.0, 0.0, 0.25])}
    found = moved(x, numbers)
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close(found[1], x[1].flip(-1))
    torch.testing.assert_close(found[2], x[2].rot90(-1, (1, 2)))
    alone = moved(x[1:2], {name: value[1:2] for name, value in numbers.items()})
    torch.testing.assert_close(alone, found[1:2])


def test_what_is_drawn_comes_as_often_and_as_far_as_was_said():
    g = torch.Generator().manual_seed(0)
    how = Augmentation(chance=0.3, turn=0.1, zoom=0.5, shift=0.25)
    drawn = how.draw(lambda: torch.rand(40_000, generator=g))
    assert list(drawn) == KINDS
    for name, values in drawn.items():
        used = values[values != 0]
        assert len(used) / len(values) == pytest.approx(0.3, abs=0.01)
        most = how.most[name]
        assert values.abs().max() <= most
        if name == "mirror":
            assert (used == 1).all()
        else:
            assert used.mean().item() == pytest.approx(0, abs=0.02 * most)
            assert used.std().item() == pytest.approx(most / math.sqrt(3), rel=0.02)


@given(chance=st.sampled_from([0.0, 1.0]))
def test_never_and_always(chance):
    drawn = Augmentation(chance=chance).draw(lambda: torch.rand(50))
    assert list(drawn) == (KINDS if chance else [])
    assert all(values.ne(0).all() for values in drawn.values())


def test_kinds_that_are_left_out_are_not_spoken_of():
    assert list(Augmentation(mirror=False, zoom=0, shift=0).most) == ["turn"]
    assert Augmentation(mirror=False, turn=0, zoom=0, shift=0).draw(lambda: torch.rand(3)) == {}


def test_half_precision_stays():
    x = pictures(dtype=torch.bfloat16)
    assert moved(x, {"turn": every(0.1)}).dtype == torch.bfloat16


def test_what_cannot_be_moved_or_meant_is_refused():
    for shape in ([3, 1], [3, 4, 5], [3, 1, 2, 3, 4]):
        with pytest.raises(RecipeError, match="method.augment=null"):
            moved(torch.zeros(shape), {"turn": every(0.1)})
        assert moved(torch.zeros(shape), {}).shape == torch.Size(shape)
    with pytest.raises(ValidationError):
        Augmentation(chance=1.5)
    with pytest.raises(ValidationError):
        Augmentation(tilt=1)
