import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for
from limbeck.transforms import ModalityDropout, Subset


def batch(n: int) -> dict[str, torch.Tensor]:
    return {"image": torch.ones(n, 1, 2, 2), "sound": torch.ones(n, 3), "text": torch.ones(n, 2, dtype=torch.int64)}


def kept_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack([inputs[key].flatten(1).ne(0).any(1) for key in ("image", "sound", "text")], 1)


def shares(kept: torch.Tensor) -> dict[tuple[bool, ...], float]:
    rows, counts = kept.unique(dim=0, return_counts=True)
    return {tuple(row.tolist()): count.item() / len(kept) for row, count in zip(rows, counts)}


SEEDS = seeds_for(torch.arange(40_000), 0, 0)


def test_subset_keeps_and_zeroes_in_training_and_in_evaluation():
    inputs = batch(2)
    for seeds in (None, SEEDS[:2]):
        shown = Subset(keep=("image", "text"))(inputs, seeds)
        assert shown["image"] is inputs["image"]
        assert shown["sound"].tolist() == [[0.0] * 3] * 2
    assert inputs["sound"].eq(1).all()
    assert Subset("image") == Subset(keep=["image"])


def test_without_a_rate_all_non_empty_subsets_are_equally_likely():
    found = shares(kept_of(ModalityDropout()(batch(40_000), SEEDS)))
    assert len(found) == 7
    assert all(share == pytest.approx(1 / 7, abs=0.01) for share in found.values())


@pytest.mark.parametrize("rate", [0.3, {"image": 0.9, "sound": 0.5, "text": 0.0}, {"image": 0.5}, {"image": 1.0}])
def test_with_rates_it_is_independent_dropping_given_that_something_is_left(rate):
    found = shares(kept_of(ModalityDropout(rate=rate)(batch(40_000), SEEDS)))
    p = [rate.get(key, 0.0) if isinstance(rate, dict) else rate for key in ("image", "sound", "text")]
    weights = {}
    for number in range(1, 8):
        kept = tuple(bool(number >> i & 1) for i in range(3))
        weight = 1.0
        for stays, dropping in zip(kept, p):
            weight *= 1 - dropping if stays else dropping
        weights[kept] = weight
    for kept, weight in weights.items():
        assert found.get(kept, 0.0) == pytest.approx(weight / sum(weights.values()), abs=0.01)


def test_keys_limit_it_and_one_modality_alone_is_never_dropped():
    shown = ModalityDropout(keys=("image", "sound"))(batch(1000), SEEDS[:1000])
    assert shown["text"].ne(0).all()
    assert kept_of(shown)[:, :2].any(1).all()
    assert not kept_of(shown)[:, :2].all()
    assert kept_of(ModalityDropout(keys="image", rate=0.9)(batch(100), SEEDS[:100])).all()


def test_the_mask_says_what_is_left_in_training_and_all_in_evaluation():
    inputs = batch(500)
    shown = ModalityDropout(mask="kept")(inputs, SEEDS[:500])
    assert torch.equal(shown["kept"], kept_of(shown))
    assert set(inputs) == {"image", "sound", "text"}
    assert kept_of(inputs).all()
    evaluated = ModalityDropout(mask="kept")(inputs, None)
    assert evaluated["kept"].dtype == torch.bool
    assert evaluated["kept"].shape == (500, 3)
    assert evaluated["kept"].all()
    assert evaluated["image"] is inputs["image"]


def test_dropped_entries_are_zero_even_where_they_were_nan():
    inputs = {"image": torch.full((64, 2), torch.nan, dtype=torch.bfloat16), "sound": torch.ones(64, 3)}
    shown = ModalityDropout()(inputs, SEEDS[:64])
    assert shown["image"].dtype == torch.bfloat16
    assert set(shown["image"].nan_to_num(7).unique().tolist()) == {0.0, 7.0}


def test_the_cut_of_the_batch_does_not_matter():
    whole = ModalityDropout(rate=0.4)(batch(9), SEEDS[:9])
    parts = [ModalityDropout(rate=0.4)(batch(len(seeds)), seeds) for seeds in SEEDS[:9].split(2)]
    for key, x in whole.items():
        assert torch.equal(x, torch.cat([part[key] for part in parts]))


@pytest.mark.parametrize("options", [{"rate": 1.0}, {"rate": {"image": 1}, "keys": ["image"]}])
def test_dropping_everything_is_refused_at_once(options):
    with pytest.raises(ValueError, match="would leave nothing"):
        ModalityDropout(**options)


def test_other_mistakes_are_answered_in_sentences():
    with pytest.raises(RecipeError, match="would leave nothing"):
        ModalityDropout(rate={"image": 1.0, "sound": 1.0, "text": 1.0})(batch(2), SEEDS[:2])
    with pytest.raises(ValueError, match=r"rate for 'imag'\. Did you mean 'image'"):
        ModalityDropout(rate={"imag": 0.5}, keys=["image", "sound"])
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ModalityDropout(rate=1.5)
    with pytest.raises(RecipeError, match="column 'words' is a list; this transform needs a tensor"):
        ModalityDropout()({"words": ["a", "b"]}, SEEDS[:2])
    many = {str(i): torch.ones(2, 1) for i in range(17)}
    with pytest.raises(RecipeError, match="17 columns; it goes up to 16"):
        ModalityDropout()(many, SEEDS[:2])
