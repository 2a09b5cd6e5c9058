import json

import pytest
import torch
from pydantic.dataclasses import dataclass

from limbeck.errors import RecipeError
from limbeck.transforms import ModalityDropout, Noise, RandomMask, Subset, Transform, to_transform


@dataclass(frozen=True)
class Invert(Transform):
    key: str

    def __call__(self, inputs, seeds):
        return inputs | {self.key: -inputs[self.key]}


@pytest.mark.parametrize(
    "transform",
    [
        Subset(keep="image"),
        ModalityDropout(),
        ModalityDropout(rate={"image": 0.5}, mask="kept", salt=3),
        Noise(std=0.1, always=True),
        RandomMask(fraction=0.75, patch=(4, 4), keys=["image"]),
        Invert("image"),
    ],
    ids=lambda t: type(t).__name__,
)
def test_the_spelling_is_plain_and_read_back_equal(transform):
    spelling = json.loads(json.dumps(transform.spec()))
    assert to_transform(spelling) == transform
    assert to_transform(spelling).spec() == spelling


def test_every_default_is_written_out():
    assert Noise(std=0.1).spec() == {"use": "noise", "salt": 0, "always": False, "std": 0.1, "keys": None}
    assert Subset("image").spec() == {"use": "subset", "keep": ["image"]}


def test_names_and_options():
    assert to_transform("modality_dropout") == ModalityDropout()
    assert to_transform({"use": f"{__name__}:Invert", "key": "x"})({"x": torch.ones(1)}, None)["x"].item() == -1
    with pytest.raises(RecipeError, match=r"unknown transform 'nois'\. Did you mean 'noise'\?"):
        to_transform("nois")
    with pytest.raises(RecipeError, match=r"unknown key 'sdt' of transform 'noise'\. Did you mean 'std'\?"):
        to_transform({"use": "noise", "sdt": 0.1})
    with pytest.raises(RecipeError, match="transform 'noise' needs the option 'std'"):
        to_transform("noise")
    with pytest.raises(RecipeError, match=r"transform 'random-mask': fraction: .*less than or equal to 1, given was 2"):
        to_transform({"use": "random-mask", "fraction": 2})
