import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for
from limbeck.transforms import Noise, RandomMask

SEEDS = seeds_for(torch.arange(400), 0, 0)


def test_noise_has_the_given_standard_deviation_and_leaves_its_input_alone():
    inputs = {"image": torch.full((400, 1, 20, 20), 3.0), "label": torch.zeros(400, dtype=torch.int64)}
    shown = Noise(std=0.5)(inputs, SEEDS)
    drawn = shown["image"] - 3
    assert drawn.std().item() == pytest.approx(0.5, rel=0.01)
    assert drawn.mean().item() == pytest.approx(0, abs=0.01)
    assert shown["label"] is inputs["label"]
    assert inputs["image"].eq(3).all()


def test_noise_differs_between_columns_salts_and_samples_and_repeats_for_equal_ones():
    inputs = {"left": torch.zeros(4, 5), "right": torch.zeros(4, 5)}
    shown = Noise(std=1)(inputs, SEEDS[:4])
    assert not (shown["left"] == shown["right"]).any()
    assert not (shown["left"][0] == shown["left"][1]).any()
    assert torch.equal(Noise(std=1)({"left": torch.zeros(4, 5)}, SEEDS[:4])["left"], shown["left"])
    assert not (Noise(std=1, salt=1)(inputs, SEEDS[:4])["left"] == shown["left"]).any()
    assert torch.equal(Noise(std=1, keys="left")(inputs, SEEDS[:4])["right"], inputs["right"])


def test_noise_and_mask_draw_independently_from_the_same_seeds():
    n = 400
    noise = Noise(std=1, keys="x")({"x": torch.zeros(n, 1, 10, 10)}, SEEDS)["x"]
    shown = RandomMask(fraction=0.5, keys="x")({"x": torch.ones(n, 1, 10, 10)}, SEEDS)["x"]
    correlation = torch.corrcoef(torch.stack([noise.flatten(), shown.flatten()]))[0, 1].item()
    assert abs(correlation) < 0.025  # five standard errors


@pytest.mark.parametrize("transform", [Noise(std=1), RandomMask(fraction=0.5)])
def test_without_seeds_nothing_happens(transform):
    inputs = {"image": torch.ones(2, 1, 4, 4)}
    shown = transform(inputs, None)
    assert shown["image"] is inputs["image"]
    assert shown is not inputs


def test_half_precision_stays_half_precision():
    shown = Noise(std=0.1)({"x": torch.ones(4, 8, dtype=torch.bfloat16)}, SEEDS[:4])
    assert shown["x"].dtype == torch.bfloat16


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    fraction=st.floats(0, 1),
    patch=st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4))),
)
@settings(deadline=None, max_examples=60)
def test_a_mask_hides_exactly_the_share_of_whole_patches(shape, fraction, patch):
    seeds = SEEDS[:3]
    shown = RandomMask(fraction=fraction, patch=patch)({"x": torch.ones(3, *shape)}, seeds)["x"]
    assert torch.equal(shown, shown[:, :1].expand_as(shown))  # channels share it
    high, wide = (patch, patch) if isinstance(patch, int) else patch
    blocks = [column.flatten(1) for row in shown[:, 0].split(high, dim=1) for column in row.split(wide, dim=2)]
    assert all((block == block[:, :1]).all() for block in blocks)
    hidden = torch.stack([block[:, 0] == 0 for block in blocks]).sum(0)
    assert hidden.tolist() == [round(fraction * len(blocks))] * 3


def test_every_position_is_hidden_equally_often():
    shown = RandomMask(fraction=0.25, dims=(-1,))({"x": torch.ones(400, 1, 3, 8)}, SEEDS)["x"]
    assert torch.equal(shown, shown[:, :, :1].expand_as(shown))  # the time steps of all mels at once
    assert shown.eq(0).float().mean((0, 1, 2)).tolist() == pytest.approx([0.25] * 8, abs=0.08)


def test_tokens_are_hidden_whole():
    shown = RandomMask(fraction=0.5, dims=(-2,))({"x": torch.ones(4, 6, 5)}, SEEDS[:4])["x"]
    assert shown.sum(-1).unique().tolist() == [0.0, 5.0]
    assert (shown.sum(-1) == 0).sum(1).tolist() == [3] * 4


def test_masked_entries_are_zero_even_where_they_were_nan():
    shown = RandomMask(fraction=1.0, dims=(-1,))({"x": torch.full((2, 3), torch.nan)}, SEEDS[:2])["x"]
    assert shown.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("transform", [Noise(std=1), RandomMask(fraction=0.5, patch=2)])
def test_the_cut_of_the_batch_does_not_matter(transform):
    x = torch.rand(7, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = transform({"x": x}, SEEDS[:7])["x"]
    parts = [transform({"x": part}, seeds)["x"] for part, seeds in zip(x.split(3), SEEDS[:7].split(3))]
    assert torch.equal(whole, torch.cat(parts))


def test_mistakes_are_answered_in_sentences():
    with pytest.raises(RecipeError, match="column 'x' is a int64 tensor; this transform needs a tensor of floating"):
        Noise(std=1, keys="x")({"x": torch.ones(2, 2, dtype=torch.int64)}, SEEDS[:2])
    with pytest.raises(RecipeError, match=r"column 'x' has shape \[3\] without dimension -2"):
        RandomMask(fraction=0.5)({"x": torch.ones(2, 3)}, SEEDS[:2])
    with pytest.raises(ValueError, match="patch has 2 sizes for 1 dims"):
        RandomMask(fraction=0.5, dims=(-1,), patch=(2, 2))
    with pytest.raises(ValueError, match="names a dimension twice"):
        RandomMask(fraction=0.5, dims=(-1, -1))
