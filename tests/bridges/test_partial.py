import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.bridges import Identity
from limbeck.bridges.partial import positions_of, to_one_kind, to_positions, to_width, width_of
from limbeck.errors import RecipeError

shapes = st.integers(1, 3).flatmap(lambda n: st.lists(st.integers(1, 9), min_size=n, max_size=n)).map(tuple)


@given(shapes, shapes)
def test_half_a_bridge_changes_one_half(student, teacher):
    there = to_positions(student, teacher)
    shape = tuple(there(torch.randn(2, *student)).shape[1:])
    assert (positions_of(shape), width_of(shape)) == (positions_of(teacher), width_of(student))
    assert not list(there.parameters())
    shape = tuple(to_width(student, teacher)(torch.randn(2, *student)).shape[1:])
    assert (len(shape), width_of(shape)) == (len(teacher), width_of(teacher))
    if len(teacher) > 1:  # a vector has one position
        assert math.prod(positions_of(shape)) == math.prod(positions_of(student))


def test_a_width_is_changed_position_by_position():
    x = torch.randn(2, 3, 2, 5)
    bridge = to_width((3, 2, 5), (7, 4))
    assert len(list(bridge.parameters())) == 2
    tokens = bridge(x)
    assert tokens.shape == (2, 10, 4)
    torch.testing.assert_close(bridge(x[..., [1]].expand_as(x))[:, 0], tokens[:, 1])
    assert to_width((3, 2, 5), (6, 9, 9))(x).shape == (2, 6, 2, 5)
    assert to_width((4, 3), (6, 9, 9))(torch.randn(2, 4, 3)).shape == (2, 6, 4, 1)
    assert to_width((3,), (6, 9, 9))(torch.randn(2, 3)).shape == (2, 6, 1, 1)
    with pytest.raises(RecipeError, match=r"\[2, 3, 4, 4\] to the teacher's \[6, 5\].*volumes go to volumes"):
        to_width((2, 3, 4, 4), (6, 5))


def test_maps_meet_maps_and_tokens_meet_tokens_as_they_are():
    assert isinstance(to_one_kind((4, 8, 8), (6, 2, 2), "this"), Identity)
    assert isinstance(to_one_kind((5, 8), (9, 3), "this"), Identity)
    assert to_one_kind((16, 8), (6, 4, 4), "this")(torch.zeros(1, 16, 8)).shape == (1, 8, 4, 4)
    assert to_one_kind((6, 4, 4), (17, 8), "this")(torch.zeros(1, 6, 4, 4)).shape == (1, 17, 6)


@pytest.mark.parametrize(
    ("student", "teacher", "why"),
    [
        ((8,), (6, 4, 4), "no two of them"),
        ((6, 4, 4), (8, 1, 1), "no two of them"),
        ((1, 8), (5, 8), "no two of them"),
        ((7, 8), (6, 4, 4), "nothing says which token lies where"),
        ((2, 3, 4, 4), (6, 4, 4), "volumes go to volumes"),
    ],
)
def test_what_cannot_face_each_other_is_said_with_both_shapes(student, teacher, why):
    with pytest.raises(RecipeError, match=why) as caught:
        to_one_kind(student, teacher, "attention transfer")
    assert str(list(student)) in str(caught.value)
    assert str(list(teacher)) in str(caught.value)
