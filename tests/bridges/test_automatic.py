import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.bridges import Bridge, Chain, Conv1x1, Identity, Linear, auto
from limbeck.errors import RecipeError

shapes = st.integers(1, 3).flatmap(lambda n: st.lists(st.integers(1, 17), min_size=n, max_size=n)).map(tuple)


def kinds(bridge: Bridge) -> list[str]:
    return [type(step).__name__ for step in (bridge.steps if isinstance(bridge, Chain) else [bridge])]


@given(shapes, shapes)
@settings(deadline=None, max_examples=120)
def test_vectors_tokens_and_maps_all_reach_each_other(student, teacher):
    bridge = auto(student, teacher)
    x = torch.randn(2, *student)
    y = bridge(x)
    assert y.shape == (2, *teacher)
    assert bridge.ships is False
    if student == teacher:
        assert y is x
        return
    x.requires_grad_()
    bridge(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bridge.parameters())
    torch.testing.assert_close(bridge(x[:1]), y[:1], rtol=1e-4, atol=1e-5)  # nothing mixes samples


@pytest.mark.parametrize(
    ("student", "teacher", "steps"),
    [
        ((8,), (8,), ["Identity"]),
        ((8,), (12,), ["Linear"]),
        ((5, 8), (5, 12), ["Linear"]),
        ((5, 8), (3, 12), ["Resample", "Linear"]),
        ((3, 8), (5, 12), ["Linear", "Resample"]),
        ((3, 8), (5, 8), ["Resample"]),
        ((8, 4, 4), (12, 4, 4), ["Conv1x1"]),
        ((8, 8, 8), (12, 4, 4), ["Resample", "Conv1x1"]),
        ((8, 4, 4), (12, 8, 8), ["Conv1x1", "Resample"]),
        ((8, 2, 4, 4), (12, 2, 4, 4), ["Conv1x1"]),
        ((8, 4, 4), (8,), ["Pool"]),
        ((8, 4, 4), (12,), ["Pool", "Linear"]),
        ((8, 2, 4, 4), (12,), ["Pool", "Linear"]),
        ((5, 8), (12,), ["Pool", "Linear"]),
        ((8,), (5, 12), ["Linear", "Spread"]),
        ((8,), (8, 4, 4), ["Spread"]),
        ((16, 8), (12, 4, 4), ["TokensToMap", "Conv1x1"]),
        ((17, 8), (8, 4, 4), ["TokensToMap"]),  # one token before the 16
        ((16, 8), (12, 7, 7), ["TokensToMap", "Conv1x1", "Resample"]),
        ((50, 8), (12, 14, 14), ["TokensToMap", "Conv1x1", "Resample"]),
        ((6, 8), (8, 2, 3), ["TokensToMap"]),
        ((6, 8), (12, 7, 7), ["Pool", "Linear", "Spread"]),  # six tokens lie on no square
        ((12, 4, 4), (16, 8), ["Conv1x1", "MapToTokens"]),
        ((12, 4, 4), (17, 8), ["Conv1x1", "MapToTokens"]),
        ((12, 7, 7), (16, 8), ["Resample", "Conv1x1", "MapToTokens"]),
        ((12, 4, 4), (6, 8), ["Pool", "Linear", "Spread"]),
    ],
)
def test_the_way_it_takes(student, teacher, steps):
    assert kinds(auto(student, teacher)) == steps


def test_equal_shapes_need_no_parameters():
    x = torch.randn(2, 3, 4)
    bridge = auto([3, 4], (3, 4))
    assert isinstance(bridge, Identity)
    assert bridge(x) is x
    assert isinstance(auto((), ()), Identity)


def test_a_square_of_tokens_lies_on_the_map_as_an_image_does():
    bridge = auto((16, 3), (3, 2, 2))
    pixels = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(bridge(pixels.flatten(2).transpose(1, 2)), torch.nn.functional.avg_pool2d(pixels, 2))


def test_fewer_positions_first_gives_what_the_other_order_gives():
    x = torch.randn(2, 8, 6, 6)
    bridge = auto((8, 6, 6), (12, 3, 2))
    resample, width = bridge.steps
    assert isinstance(width, Conv1x1)
    torch.testing.assert_close(bridge(x), resample(width(x)))


@pytest.mark.parametrize(
    ("student", "teacher", "why"),
    [
        ((8, 2, 4, 4), (5, 12), "volumes go to volumes and to vectors only"),
        ((8, 4, 4), (8, 2, 4, 4), "volumes go to volumes and to vectors only"),
        ((16, 8), (8, 2, 4, 4), "volumes go to volumes and to vectors only"),
        ((), (8,), "the student's has 0 dimensions"),
        ((8,), (1, 2, 3, 4, 5), "the teacher's has 5 dimensions; known are 1 to 4"),
        ((8, 0), (8, 4), "none empty"),
    ],
)
def test_impossible_pairs_are_answered_in_a_sentence(student, teacher, why):
    with pytest.raises(RecipeError, match=why) as caught:
        auto(student, teacher)
    assert f"from the student's {list(student)} to the teacher's {list(teacher)}" in str(caught.value)
    assert "bridge=module:Class" in str(caught.value)


def test_a_chain_ships_if_a_part_of_it_does():
    part = Linear(2, 2)
    part.ships = True
    assert Chain(Identity(), part).ships
    assert not Chain(Identity(), Linear(2, 2)).ships
