import pytest
import torch

from limbeck.bridges.as_map import as_map
from limbeck.errors import RecipeError


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 4, 5), (3, 4, 5)),
        ((6,), (6, 1, 1)),
        ((16, 7), (7, 4, 4)),
        ((17, 7), (7, 4, 4)),
        ((1, 7), (7, 1, 1)),
    ],
)
def test_the_shape_that_is_told_is_the_shape_that_comes(shape, expected):
    bridge, told = as_map(shape)
    assert told == expected
    assert bridge(torch.randn(2, *shape)).shape == (2, *expected)
    assert not list(bridge.parameters())


def test_tokens_are_laid_out_row_by_row_without_the_cls_token():
    tokens = torch.arange(10.0).view(1, 10, 1)
    bridge, _ = as_map((10, 1))
    assert bridge(tokens)[0, 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    vector = torch.randn(2, 3)
    assert torch.equal(as_map((3,))[0](vector)[:, :, 0, 0], vector)


@pytest.mark.parametrize(
    ("shape", "why"),
    [((6, 4), "no square"), ((2, 7), "no square"), ((2, 3, 4, 5), "4 dimensions"), ((), "0 dimensions")],
)
def test_what_is_no_map_is_refused_in_a_sentence(shape, why):
    with pytest.raises(RecipeError, match=why):
        as_map(shape)
