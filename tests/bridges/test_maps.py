import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.bridges import Conv1x1, Resample


@pytest.mark.parametrize("positions", [(6,), (4, 5), (2, 3, 4)])
def test_conv1x1_is_one_affine_map_at_every_position(positions):
    bridge = Conv1x1(3, 5)
    x = torch.randn(2, 3, *positions)
    expected = torch.einsum("bc...,oc->bo...", x, bridge.map.weight[:, :, 0]) + bridge.map.bias.view(
        -1, *[1] * len(positions)
    )
    torch.testing.assert_close(bridge(x), expected)


def test_conv1x1_agrees_with_torchs_two_dimensional_one():
    bridge, other = Conv1x1(3, 5), torch.nn.Conv2d(3, 5, 1)
    other.load_state_dict({"weight": bridge.map.weight[..., None], "bias": bridge.map.bias})
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(bridge(x), other(x))


@given(
    sizes=st.integers(1, 3).flatmap(lambda n: st.tuples(*[st.lists(st.integers(1, 7), min_size=n, max_size=n)] * 2)),
    channels=st.sampled_from([1, -1]),
)
@settings(deadline=None, max_examples=60)
def test_resample_gives_the_size_and_leaves_constants_alone(sizes, channels):
    here, there = sizes
    values = torch.tensor([1.0, -2.0])
    x = values.view(1, 2, *[1] * len(here)).expand(3, 2, *here).movedim(1, channels)
    expected = values.view(1, 2, *[1] * len(here)).expand(3, 2, *there).movedim(1, channels)
    torch.testing.assert_close(Resample(tuple(there), channels=channels)(x), expected)


def test_resample_averages_where_it_shrinks_and_interpolates_where_it_grows():
    x = torch.arange(8.0).view(1, 1, 2, 4)
    assert Resample((1, 2))(x).flatten().tolist() == [2.5, 4.5]
    assert Resample((2, 2))(x).flatten().tolist() == [0.5, 2.5, 4.5, 6.5]
    assert Resample((4,))(torch.tensor([[[0.0, 1.0]]])).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]
    both = Resample((4, 2))(x)  # the height grows, the width shrinks
    assert both[0, 0, :, 0].tolist() == [0.5, 1.5, 3.5, 4.5]
    assert Resample((2, 4))(x) is not None
    assert torch.equal(Resample((2, 4))(x), x)


def test_resample_of_tokens_moves_along_the_tokens():
    x = torch.randn(2, 6, 3)
    torch.testing.assert_close(Resample((3,), channels=-1)(x), x.view(2, 3, 2, 3).mean(2))


def test_resample_takes_any_size_at_run_time():
    bridge = Resample((2, 2))
    assert bridge(torch.randn(1, 3, 5, 9)).shape == bridge(torch.randn(1, 3, 1, 1)).shape == (1, 3, 2, 2)
