import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.errors import RecipeError
from limbeck.losses.columns import channels_of, columns, facing, products, spread

nan = float("nan")


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("shape", "at"), [((2, 5), 1), ((2, 7, 5), 2), ((2, 5, 3, 4), 1), ((2, 5, 2, 3, 4), 1)])
def test_channels_come_first_behind_the_batch_in_maps_and_last_elsewhere(shape, at):
    x = features(*shape)
    assert channels_of(x, None) == at
    assert columns(x).shape == (2, 5, x[0].numel() // 5)
    assert torch.equal(columns(x), x.movedim(at, 1).reshape(2, 5, -1))
    assert torch.equal(columns(x, dim=-1), x.movedim(-1, 1).reshape(2, x.shape[-1], -1))


def test_a_masked_position_is_zero_in_every_channel_and_has_no_gradient():
    x = features(2, 3, 2, 2).masked_fill(torch.tensor([[True, False], [False, False]]), nan).requires_grad_()
    mask = torch.tensor([[False, True], [True, True]]).expand(2, 2, 2)
    found = columns(x, mask=mask)
    assert torch.equal(found[:, :, 0], torch.zeros(2, 3).double())
    assert found.isfinite().all()
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(gradient, mask.double().unsqueeze(1).expand_as(x))


@given(st.integers(1, 3), st.lists(st.integers(1, 4), min_size=1, max_size=3))
@settings(max_examples=30)
def test_a_mask_is_spread_as_columns_lay_the_positions_out(channels, places):
    x = features(2, channels, *places) if len(places) > 1 else features(2, *places, channels)
    mask = torch.rand(2, *places, generator=torch.Generator().manual_seed(1)) > 0.5
    assert torch.equal(columns(x, mask=mask).ne(0).any(1), spread(mask, x.shape))
    samples = torch.tensor([True, False])
    assert torch.equal(spread(samples, x.shape), samples[:, None].expand(2, spread(mask, x.shape).shape[1]))


def test_the_larger_side_is_pooled_to_the_smaller_in_every_dimension():
    s, t = features(2, 3, 8, 2), features(2, 5, 4, 6, seed=1)
    ours, theirs, counts = facing(s, t, "this")
    assert torch.equal(ours, F.adaptive_avg_pool2d(s, (4, 2)).flatten(2))
    assert torch.equal(theirs, F.adaptive_avg_pool2d(t, (4, 2)).flatten(2))
    assert counts is None
    ours, theirs, _ = facing(features(2, 8, 3), features(2, 4, 5, seed=1), "this")
    assert (ours.shape, theirs.shape) == ((2, 3, 4), (2, 5, 4))
    torch.testing.assert_close(ours[0, :, 0], features(2, 8, 3)[0, :2].mean(0))


def test_both_sides_are_computed_in_the_wider_number_format():
    ours, theirs, _ = facing(features(1, 2, 2, 2).half(), features(1, 2, 2, 2), "this")
    assert ours.dtype == theirs.dtype == torch.float64
    ours, theirs, _ = facing(features(1, 2, 2, 2).half(), features(1, 2, 2, 2).bfloat16(), "this")
    assert ours.dtype == theirs.dtype == torch.float32


def test_products_stay_exact_under_autocast():
    a, b = features(2, 3, 4).float(), features(2, 5, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = products(a, b)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.einsum("bnd,bmd->bnm", a, b))


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(RecipeError, match=r"^this compares positions.*\[2, 3\].*needed are two maps"):
        facing(torch.zeros(2, 3), torch.zeros(2, 3), "this")
    with pytest.raises(RecipeError, match=r"\[2, 3, 4, 4\], the teacher's \[2, 16, 3\]"):
        facing(x, torch.zeros(2, 16, 3), "this")
    with pytest.raises(
        RecipeError, match=r"same positions on both sides; the student has \[4, 4\], the teacher \[2, 2\]"
    ):
        facing(x, torch.zeros(2, 3, 2, 2), "this", mask=torch.ones(2, 4, 4, dtype=torch.bool))
    with pytest.raises(RecipeError, match=r"the mask of a loss has shape \[2, 3\]; needed is \[2, 4, 4\]"):
        facing(x, x, "this", mask=torch.ones(2, 3, dtype=torch.bool))
