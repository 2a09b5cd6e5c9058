"""Exits from maps, tokens and vectors: their steps as published, merging of patches, what is read at the end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.bridges.exits import MapExit, TokenExit, VectorExit, exit_for
from limbeck.errors import RecipeError


@pytest.mark.parametrize(
    ("stage", "channels"), [(1, [(3, 6), (6, 12), (12, 20)]), (2, [(3, 6), (6, 20)]), (3, [(3, 20)]), (4, [(3, 20)])]
)
def test_a_map_is_halved_once_per_stage_that_is_left(stage, channels):
    head = exit_for((3, 16, 16), stage, 20, 5)
    assert isinstance(head, MapExit)
    pointwise = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert [(m.in_channels, m.out_channels) for m in pointwise] == channels
    x = torch.randn(2, 3, 16, 16)
    assert head.steps(x).shape[2:] == (16 // 2 ** (4 - stage),) * 2
    torch.testing.assert_close(head(x), head.head(head.steps(x).mean((2, 3))))
    assert not head.ships


@given(side=st.integers(2, 29), extra=st.sampled_from([0, 1]), stage=st.integers(1, 4))
def test_tokens_are_merged_until_seven_wide(side, extra, stage):
    head = exit_for((side**2 + extra, 8), stage, 10, 3)
    assert isinstance(head, TokenExit)
    assert len(head.blocks) == max(4 - stage, 1)
    seen = []
    head.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    assert head(torch.randn(2, side**2 + extra, 8)).shape == (2, 3)
    expected = side
    while expected > 7:
        expected = (expected + 1) // 2
    cls = head.extra
    assert seen == [(2, expected**2 + cls, 12)]  # 10 is rounded up to a multiple of 4 heads
    assert cls == extra


def test_merging_joins_the_four_patches_of_a_square():
    head = TokenExit((64, 4), 3, 4, 2)
    nn.init.eye_(head.embed.weight)
    nn.init.zeros_(head.embed.bias)
    (merge,) = head.merges
    nn.init.zeros_(merge.bias)
    merge.weight.data = torch.cat([torch.eye(4) * c for c in (1.0, 10.0, 100.0, 1000.0)], 1)
    seen = []
    head.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 64, 4)
    head(x)
    grid = x.view(8, 8, 4)
    expected = grid[0::2, 0::2] + 10 * grid[0::2, 1::2] + 100 * grid[1::2, 0::2] + 1000 * grid[1::2, 1::2]
    torch.testing.assert_close(seen[0][0], expected.flatten(0, 1), rtol=1e-4, atol=1e-3)


def test_the_cls_token_is_read_where_there_is_one_and_else_the_mean():
    for tokens, extra in ((17, 1), (16, 0), (6, 0)):
        head, x = TokenExit((tokens, 8), 4, 8, 3).eval(), torch.randn(2, tokens, 8)
        inner = head.norm(head.blocks(head.embed(x)))
        expected = head.head(inner[:, 0] if extra else inner.mean(1))
        torch.testing.assert_close(head(x), expected)
        assert head.extra == extra


def test_vectors_pass_one_hidden_layer():
    head = exit_for((5,), 1, 7, 3)
    assert isinstance(head, VectorExit)
    assert [p.shape for p in head.parameters()] == [(7, 5), (7,), (3, 7), (3,)]
    assert head(torch.randn(2, 5)).shape == (2, 3)
    assert {e.words() for e in (head, exit_for((4, 8), 1, 8, 2), exit_for((4, 8, 8), 1, 8, 2))} == {
        "an MLP of one hidden layer",
        "3 transformer blocks and a linear map",
        "3 convolutions and a linear map",
    }


@pytest.mark.parametrize("shape", [(), (2, 3, 4, 5)])
def test_other_features_are_refused(shape):
    with pytest.raises(RecipeError, match="needed is a map, a vector or tokens"):
        exit_for(shape, 1, 4, 2)
