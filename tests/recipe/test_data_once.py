"""Many runs on the same data load them once, inside a block that says so, and nowhere else."""

import torch

from limbeck import Recipe
from limbeck.data.tensors import Data, TensorSplit
from limbeck.recipe.building import each_data_once

loads = []


def made(seed: int = 0) -> Data:
    loads.append(seed)
    split = TensorSplit({"x": torch.full((2, 1), float(seed)), "label": torch.tensor([0, 1])})
    return Data({"train": split}, {"x": "", "label": ""}, {"label": ["a", "b"]}, source="made")


def built(drawn, **keys):
    data = {"path": f"{__name__}:made", "args": {"seed": drawn}}
    return Recipe({"data": data, "student": {"model": "torch.nn:Linear", "view": "x"}} | keys).build_data()


def test_equal_keys_are_loaded_once_and_others_are_not_mistaken_for_them():
    loads.clear()
    with each_data_once(most=2):
        first = built(0)
        assert built(0, seed=7) is first  # the recipe's own seed is no key of the data
        assert built(1)["train"].tensors["x"][0] == 1
        assert loads == [0, 1]
        built(2)  # the third goes in, the first goes out
        assert built(1) is not first
        built(0)
    assert loads == [0, 1, 2, 0]
    built(0)
    built(0)
    assert loads == [0, 1, 2, 0, 0, 0]
