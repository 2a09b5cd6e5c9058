"""Heads on early features: shapes of every kind, and no sample sees another."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.models.exits import Exit, pooled_head


@given(
    channels=st.integers(1, 6),
    size=st.integers(1, 17),
    last=st.tuples(st.integers(1, 8), st.integers(1, 9)),
    classes=st.integers(1, 5),
)
def test_maps_of_any_size_come_to_the_last_shape(channels, size, last, classes):
    end = (last[0], last[1], last[1])
    exit = Exit((channels, size, size), end, classes)
    feature, logits = exit(torch.randn(3, channels, size, size))
    assert feature.shape == (3, *end)
    assert logits.shape == (3, classes)


@pytest.mark.parametrize(
    ("shape", "last"), [((7,), (5,)), ((6, 4), (6, 9)), ((5, 4), (3, 4)), ((4, 6, 6), (8,)), ((4,), (4,))]
)
def test_vectors_and_tokens_too(shape, last):
    feature, logits = Exit(shape, last, 3)(torch.randn(2, *shape))
    assert feature.shape == (2, *last)
    assert logits.shape == (2, 3)


def test_maps_are_halved_by_learnt_convolutions_and_not_resampled():
    exit = Exit((4, 16, 16), (12, 4, 4), 3)
    strides = [m.stride for m in exit.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert strides == [(2, 2), (2, 2)]
    assert [m.out_channels for m in exit.modules() if isinstance(m, nn.Conv2d) and m.groups == 1] == [8, 12]


def test_no_sample_sees_another():
    exit, x = Exit((3, 8, 8), (6, 4, 4), 3), torch.randn(4, 3, 8, 8)
    alone = torch.cat([exit(one)[1] for one in x.split(1)])
    torch.testing.assert_close(exit(x)[1], alone)


@pytest.mark.parametrize(("shape", "width"), [((4, 3, 3), 4), ((9, 5), 5), ((3,), 3)])
def test_a_pooled_head_is_the_mean_over_positions_and_a_linear_map(shape, width):
    head, x = pooled_head(shape, 3), torch.randn(2, *shape)
    linear = head[1]
    assert (linear.in_features, linear.out_features) == (width, 3)
    mean = {3: lambda: x.mean((2, 3)), 2: lambda: x.mean(1), 1: lambda: x}[len(shape)]()
    torch.testing.assert_close(head(x), linear(mean))
