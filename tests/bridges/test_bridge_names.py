import pytest
import torch
from torch import nn

from limbeck import bridges
from limbeck.errors import RecipeError


class Mine(nn.Module):
    def __init__(self, student_shape, teacher_shape, gain=1.0):
        super().__init__()
        self.map, self.gain = nn.Linear(student_shape[0], teacher_shape[0]), gain

    def forward(self, x):
        return self.gain * self.map(x)


def test_names_of_recipes():
    assert isinstance(bridges.find("auto", (8,), (8,)), bridges.Identity)
    assert isinstance(bridges.find("none", (8,), (12,)), bridges.Identity)  # relations need no equal widths
    linear = bridges.find("linear", (5, 8), (5, 12), bias=False)
    assert linear(torch.ones(2, 5, 8)).shape == (2, 5, 12)
    assert linear.map.bias is None
    assert bridges.find("linear", (8,), (8,))(torch.ones(2, 8)).shape == (2, 8)
    assert bridges.find("mlp", (8,), (12,), hidden=3).sizes == (8, 3, 12)
    assert bridges.find("conv1x1", (8, 20), (12, 20))(torch.ones(2, 8, 20)).shape == (2, 12, 20)
    mine = bridges.find(f"{__name__}:Mine", (8,), (12,), gain=2.0)
    assert mine(torch.ones(2, 8)).shape == (2, 12)


def no_module(student_shape, teacher_shape):
    return 3


@pytest.mark.parametrize(
    ("bridge", "shapes", "sentence"),
    [
        ("auto", ((8,), (8,)), "student and teacher both have [8], compared as they are."),
        ("none", ((8,), (12,)), "the student's [8] and the teacher's [12] are compared without a bridge."),
        (
            "auto",
            ((64, 7, 7), (128, 14, 14)),
            "the student's [64, 7, 7] is brought to the teacher's [128, 14, 14] by a 1x1 convolution from 64 to 128 channels, "
            "then resampled to 14x14 positions (8,320 parameters, left behind at export).",
        ),
        (
            "auto",
            ((50, 8), (8, 7, 7)),
            "the student's [50, 8] is brought to the teacher's [8, 7, 7] by its tokens without the first laid out as a map "
            "of 7x7 (no parameters).",
        ),
        (
            "mlp",
            ((8,), (12,)),
            "the student's [8] is brought to the teacher's [12] by an MLP of widths 8-12-12 (264 parameters, left behind at "
            "export).",
        ),
    ],
)
def test_a_bridge_is_described_in_one_sentence(bridge, shapes, sentence):
    assert bridges.describe(bridges.find(bridge, *shapes), *shapes) == sentence


def test_a_bridge_of_ones_own_is_described_too():
    mine = Mine((8,), (12,))
    assert "by Mine (108 parameters, left behind at export)" in bridges.describe(mine, (8,), (12,))
    mine.ships = True
    assert "shipped with the student" in bridges.describe(mine, (8,), (12,))


def test_every_bridge_says_whether_it_ships_and_what_it_does():
    made = [bridges.auto(s, t) for s in ((8,), (6, 8), (8, 4, 4)) for t in ((8,), (16, 9), (9, 3, 3))]
    assert all(bridge.ships is False and bridge.words() for bridge in made)


@pytest.mark.parametrize(
    ("name", "shapes", "options", "sentence"),
    [
        ("linaer", ((8,), (8,)), {}, r"unknown bridge 'linaer'\. Did you mean 'linear'\?"),
        (
            "linear",
            ((5, 8), (6, 8)),
            {},
            r"student's \[5, 8\] to the teacher's \[6, 8\].*linear changes only the last dimension",
        ),
        ("conv1x1", ((8, 4, 4), (8, 2, 2)), {}, "conv1x1 changes only the first dimension"),
        ("conv1x1", ((8,), (9,)), {}, "there must be positions behind it"),
        ("mlp", ((8,), (9,)), {"hiden": 3}, r"unknown key 'hiden' of bridge 'mlp'\. Did you mean 'hidden'\?"),
        ("auto", ((8,), (9,)), {"bias": False}, r"unknown key 'bias' of bridge 'auto'\. It has no options\."),
        ("nowhere_to_be_found:X", ((8,), (9,)), {}, "no module nowhere_to_be_found"),
        (f"{__name__}:no_module", ((8,), (9,)), {}, "gave a int; needed is a torch module"),
        (f"{__name__}:Mine", ((8,), (9,)), {"gian": 2}, "is called with both shapes and its options: .*'gian'"),
    ],
)
def test_mistakes_are_answered_in_sentences(name, shapes, options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        bridges.find(name, *shapes, **options)
