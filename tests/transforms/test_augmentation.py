import random

import numpy as np
import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for
from limbeck.transforms import Apply, to_transform

SEEDS = seeds_for(torch.arange(8), 0, 0)


def jitter(x: torch.Tensor) -> torch.Tensor:
    """Draws from every global generator that augmentations use."""
    return x + torch.rand(()) + random.random() + float(np.random.rand())


def add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


class Scale:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(())


def test_a_run_repeats_and_the_cut_does_not_matter():
    x = torch.zeros(8, 2)
    whole = Apply(jitter, "x")({"x": x}, SEEDS)["x"]
    assert len(whole[:, 0].unique()) == 8
    torch.rand(5)  # whatever else was drawn meanwhile
    parts = [Apply(jitter, "x")({"x": part}, seeds)["x"] for part, seeds in zip(x.split(3), SEEDS.split(3))]
    assert torch.equal(whole, torch.cat(parts))
    assert not (Apply(jitter, "x", salt=1)({"x": x}, SEEDS)["x"] == whole).any()
    assert x.eq(0).all()


@pytest.mark.parametrize("each", ["sample", "batch"])
def test_the_global_generators_go_on_as_if_nothing_had_happened(each):
    def draw():
        return torch.rand(2).tolist(), random.random(), np.random.rand()

    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    undisturbed = draw()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    Apply(jitter, "x", each=each)({"x": torch.zeros(8, 2)}, SEEDS)
    assert draw() == undisturbed


def test_generators_are_put_back_after_an_error_too():
    def fails(x):
        torch.rand(3)
        raise RuntimeError("a user's bug")

    torch.manual_seed(0)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="a user's bug"):
        Apply(fails, "x")({"x": torch.zeros(8, 2)}, SEEDS)
    assert torch.equal(before, torch.get_rng_state())


def test_a_whole_batch_is_augmented_at_once_and_repeats():
    calls = []

    def mix(x):
        calls.append(x.shape)
        return x[torch.randperm(len(x))]

    x = torch.arange(8.0)[:, None]
    first, second = (Apply(mix, "x", each="batch")({"x": x}, SEEDS)["x"] for _ in range(2))
    assert torch.equal(first, second)
    assert calls == [(8, 1)] * 2


def test_evaluation_is_left_alone():
    inputs = {"x": torch.zeros(8, 2), "words": ["a"] * 8}
    assert Apply(add_one, "x")(inputs, None)["x"] is inputs["x"]
    shown = Apply(str.upper, "words")(inputs, SEEDS)
    assert shown["words"] == ["A"] * 8


def test_a_function_with_an_address_is_read_back_and_others_are_named():
    spelling = Apply(add_one, "x").spec()
    assert spelling["function"] == f"{__name__}:add_one"
    assert to_transform(spelling) == Apply(add_one, "x")
    named = Apply(Scale(), "x").spec()
    assert named["function"] == f"{__name__}:Scale()"
    with pytest.raises(RecipeError, match=r"has no Scale\(\)"):
        to_transform(named)


def test_mistakes_are_answered_in_sentences():
    sizes = iter([1, 2, 3, 4, 5, 6, 7, 8])
    with pytest.raises(RecipeError, match=r"samples came back with the shapes \[\(1,\), \(2,\)"):
        Apply(lambda x: torch.zeros(next(sizes)), "x")({"x": torch.zeros(8, 2)}, SEEDS)
    with pytest.raises(ValueError, match="function is a int; needed is something that can be called"):
        Apply(3, "x")
    with pytest.raises(RecipeError, match="no module nowhere_to_be_found"):
        to_transform({"use": "apply", "function": "nowhere_to_be_found:f", "key": "x"})
