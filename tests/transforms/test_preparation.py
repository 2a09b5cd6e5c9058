"""Pictures standardised, texts tokenised: closed forms, equality of sizes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.transforms import to_transform
from limbeck.transforms.preparation import Standardise, Tokenise
from limbeck.views import View

numbers = st.floats(0.05, 0.95)


@given(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3), st.integers(0, 3))
def test_standardising_is_undone_by_its_inverse(mean, std, rows):
    x = torch.rand(rows, 3, 2, 4, dtype=torch.float64)
    y = Standardise(key="p", mean=tuple(mean), std=tuple(std))({"p": x}, None)["p"]
    back = y * torch.tensor(std, dtype=x.dtype).view(3, 1, 1) + torch.tensor(mean, dtype=x.dtype).view(3, 1, 1)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    assert y.dtype == x.dtype


def test_sizes_a_constant_stays_a_constant_and_the_same_size_is_not_touched():
    made = Standardise(key="p", mean=(0.0,), std=(1.0,), size=(3, 5))
    torch.testing.assert_close(made({"p": torch.full((2, 1, 9, 4), 0.25)}, None)["p"], torch.full((2, 1, 3, 5), 0.25))
    x = torch.rand(2, 1, 3, 5)
    assert torch.equal(made({"p": x}, None)["p"], x)


def test_grey_pictures_get_as_many_channels_as_the_mean():
    made = Standardise(key="p", mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    y = made({"p": torch.full((1, 1, 2, 2), 0.5)}, None)["p"]
    torch.testing.assert_close(y[0, :, 0, 0], torch.tensor([0.4, 0.3, 0.2]))
    with pytest.raises(RecipeError, match=r"holds \[2, 4, 4\] per sample; the model is shown pictures of 3 channels"):
        made({"p": torch.rand(1, 2, 4, 4)}, None)
    with pytest.raises(RecipeError, match="floating-point"):
        made({"p": torch.zeros(1, 3, 2, 2, dtype=torch.uint8)}, None)


def test_it_is_spelled_in_a_recipe_and_read_back():
    view = View("p", transforms={"use": "standardise", "key": "p", "mean": [0.5], "std": [0.5], "size": [4, 4]})
    assert View.of(view.spec()) == view
    for options, told in (
        ({"mean": [0.5], "std": [0.0]}, "none that is 0"),
        ({"mean": [0.5], "std": [1, 1]}, "one value per channel"),
    ):
        with pytest.raises(RecipeError, match=told):
            to_transform({"use": "standardise", "key": "p", **options})


def test_the_input_is_left_as_it_is():
    x = torch.rand(1, 1, 2, 2)
    before = x.clone()
    Standardise(key="p", mean=(0.5,), std=(0.5,))({"p": x}, None)
    assert torch.equal(x, before)


def test_what_cannot_be_tokenised(tmp_path):
    made = Tokenise(key="t", tokenizer=str(tmp_path), mask="m")
    assert (made.adds(), made.names()) == (("m",), ("t",))
    with pytest.raises(RecipeError, match="does not hold texts"):
        made({"t": torch.zeros(2)}, None)
    with pytest.raises(RecipeError, match="there is no tokenizer in"):
        made({"t": ["a"]}, None)
