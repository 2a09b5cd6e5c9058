"""Pictures as they are compared: sizes, thumbnails, levels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.evaluation.pictures import as_large_as, looked_at, thumbnails
from limbeck.signals import Signals
from limbeck.tasks import Task


def test_real_pictures_are_brought_to_the_size_of_generated_ones():
    real, made = torch.rand(2, 3, 12, 20), torch.rand(2, 3, 6, 10)
    found = as_large_as(real, made)
    assert found.shape == made.shape
    torch.testing.assert_close(found.mean((2, 3)), real.mean((2, 3)), atol=0.02, rtol=0)
    flat = torch.full((2, 3, 9, 9), 0.25)
    torch.testing.assert_close(as_large_as(flat, made), torch.full_like(made, 0.25))
    assert as_large_as(made, made) is made
    points = torch.rand(2, 5)
    assert as_large_as(points, torch.rand(2, 2)) is points


@given(st.integers(1, 80), st.integers(1, 80))
def test_only_large_pictures_become_thumbnails_with_the_same_mean(high, wide):
    x = torch.rand(1, 2, high, wide)
    small = thumbnails(x)
    if max(high, wide) <= 32:
        assert small is x
    else:
        assert small.shape == (1, 2, 16, 16)
    if high % 16 == wide % 16 == 0:
        torch.testing.assert_close(small.mean(), x.mean())


def test_a_thumbnail_is_the_mean_of_its_place():
    x = torch.arange(64.0 * 64).view(1, 1, 64, 64)
    torch.testing.assert_close(thumbnails(x)[0, 0, 1, 2], x[0, 0, 4:8, 8:12].mean())


def test_a_judge_sees_levels_in_three_channels():
    x = torch.tensor([[-1.0, -0.5], [0.5, 1.0]])[None, None]
    seen = looked_at(x, True, "fid")
    assert seen.shape == (1, 3, 2, 2)
    assert torch.equal(seen[0, 0], seen[0, 2])
    assert (seen * 255).frac().abs().max() < 1e-4
    torch.testing.assert_close(seen[0, 0], torch.tensor([[0.0, 64 / 255], [191 / 255, 1.0]]))
    assert float(looked_at(torch.full((1, 3, 1, 1), 1.7), False, "fid").max()) == 1
    for odd in (torch.rand(2, 4, 8, 8), torch.rand(2, 7)):
        with pytest.raises(RecipeError, match=r"the check fid looks at pictures.*\[\d+(, 8, 8)?\]"):
            looked_at(odd, False, "fid")


def test_figures_of_large_pictures_are_of_thumbnails_whatever_size_the_real_ones_have():
    made, real = torch.rand(3, 3, 64, 64), torch.rand(3, 3, 40, 50)
    outputs, target = Task("generation", target="image").outputs(Signals({"generated": made}), {"image": real})
    assert outputs.shape == (3, 3 * 256 + 2)
    assert target.shape == (3, 3 * 256)
    torch.testing.assert_close(outputs[:, :-2], thumbnails(made).flatten(1))
    small = torch.rand(3, 1, 8, 8)
    outputs, target = Task("generation", target="image").outputs(Signals({"generated": small}), {"image": small})
    assert torch.equal(outputs[:, :-2], target)
