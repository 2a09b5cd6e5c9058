"""The first rows of a split are those rows, under their own numbers and names."""

import pytest
import torch

from limbeck.data.tensors import Data, TensorSplit
from limbeck.planning.shortening import ROWS, ShortRecipe, first


class Reading:
    """A split that is not in memory."""

    def __init__(self, inner: TensorSplit):
        self.inner, self.ids = inner, inner.ids

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        return self.inner[index]

    def __getitems__(self, rows):
        return self.inner.__getitems__(rows)


@pytest.mark.parametrize("kind", [lambda split: split, Reading])
@pytest.mark.parametrize("count", [1, 7, 10, 11])
def test_first(kind, count):
    split = TensorSplit({"x": torch.arange(10.0)}, 50, [f"row {i}" for i in range(10)])
    short = first(kind(split), count)
    kept = list(range(min(count, 10)))
    assert len(short) == len(kept)
    assert short.ids == split.ids[: len(kept)]
    got, expected = short.__getitems__(kept), split.__getitems__(kept)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_what_is_trained_on_stays_whole_and_the_fingerprint_is_that_of_all():
    splits = {
        n: TensorSplit({"x": torch.zeros(ROWS + 5), "label": torch.zeros(ROWS + 5).long()}) for n in ("train", "test")
    }
    data = Data(splits, source="zeros")
    recipe = ShortRecipe({"data": data})
    short = recipe.build_data()
    assert (len(short["train"]), len(short["test"])) == (ROWS + 5, ROWS)
    assert recipe.full == {"train": ROWS + 5, "test": ROWS + 5}
    assert recipe.data_bytes == 2 * (ROWS + 5) * (4 + 8 + 8)
    assert short.fingerprint == data.fingerprint


def test_checks_look_at_one_sample_for_each_row_however_many_are_wanted():
    asked = [
        {"use": "fid", "samples": 10000, "classifier": "weights.pth"},
        "clip-score",
        {"use": "speed", "batch_size": 1},
    ]
    recipe = ShortRecipe({"evaluate": asked})
    assert recipe.evaluate_choices() == [
        {"use": "fid", "classifier": "weights.pth", "layer": None},
        {"use": "clip-score"},
        {"use": "speed", "batch_size": 1, "repeats": 20},
    ]
    assert recipe.evaluate[0]["samples"] == 10000  # what will be run
