"""Guidance: its limits, that the head does not matter, drawn scales, and what is refused."""

import pytest
import torch

from limbeck.diffusion.guidance import Guidance, guide, to_guidance
from limbeck.diffusion.predictors import HEADS, Prediction
from limbeck.errors import RecipeError


def two(head="x0"):
    x_t, c, u = torch.randn(3, 4, 2, dtype=torch.float64)
    alpha, sigma = torch.full((4, 1), 0.8, dtype=torch.float64), torch.full((4, 1), 0.6, dtype=torch.float64)
    return Prediction(c, head, x_t, alpha, sigma), Prediction(u, head, x_t, alpha, sigma)


def test_limits_and_the_other_way_to_write_it():
    c, u = two()
    assert torch.equal(guide(c, u, 1.0).value, c.value)
    assert torch.equal(guide(c, u, 0.0).value, u.value)
    torch.testing.assert_close(guide(c, u, 3.5).value, c.value + 2.5 * (c.value - u.value))


@pytest.mark.parametrize("head", HEADS)
def test_it_is_the_same_in_every_head(head):
    c, u = two()
    scale = torch.tensor([0.5, 1, 2, 7.5], dtype=torch.float64)
    expected = guide(c, u, scale).x0
    mixed = [Prediction(p.as_head(head), head, p.x_t, p.alpha, p.sigma) for p in (c, u)]
    torch.testing.assert_close(guide(*mixed, scale).x0, expected)


def test_what_is_not_finite_without_the_condition_does_not_matter_at_scale_one():
    c, u = two()
    u.value.fill_(torch.nan)
    assert torch.equal(guide(c, u, 1.0).value, c.value)


def test_drawn_scales():
    found = Guidance(0.5, 4).draw(torch.tensor([0.0, 0.5, 1.0]))
    assert found.tolist() == [0.5, 2.25, 4]
    assert Guidance(2, 2).draw(torch.rand(5)).tolist() == [2] * 5
    assert Guidance().none
    assert not Guidance(1, 2).none


def test_ways_to_write_it():
    assert to_guidance(4.5).spec() == 4.5
    assert to_guidance([0.5, 4]).spec() == [0.5, 4]
    for wrong in ([4, 1], "much", [1, 2, 3], True):
        with pytest.raises(RecipeError, match="guidance"):
            to_guidance(wrong)
