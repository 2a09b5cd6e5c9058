"""Heads on frozen features: what is heard, what learns, the penalty in closed form."""

import pytest
import torch
from torch import nn

from limbeck.actors import Actor
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.projected import Projected, gradient_penalty
from limbeck.errors import RecipeError
from limbeck.models.toy import PictureDenoiser, PointDenoiser


class Seen(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.flat = nn.Conv2d(1, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.flat(self.conv(x).relu().mean((2, 3)))


def test_the_penalty_of_a_linear_score_is_its_weights_square():
    w = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    found = gradient_penalty(lambda x: x @ w, torch.randn(4, 3))
    torch.testing.assert_close(found, torch.full((4,), 14.0))
    (back,) = torch.autograd.grad(found.mean(), w)
    torch.testing.assert_close(back, 2 * w)


def test_heads_stand_on_a_denoisers_middle_at_the_least_noise():
    torch.manual_seed(0)
    trunk, x = Denoiser(Actor(PointDenoiser(width=8, classes=3))), torch.randn(5, 2)
    judge = Projected(trunk, x, {"condition": torch.tensor([0, 1, 2, 0, 1])})
    given = {"condition": torch.tensor([0, 1, 2, 0, 1])}
    heard = trunk.feature("judged.hidden.1", x, torch.full((5,), trunk.noise.first), given)
    torch.testing.assert_close(judge(x, given), judge.heads[0](heard))
    assert [p.requires_grad for p in judge.frozen.parameters()] == [False] * len(list(judge.frozen.parameters()))
    x.requires_grad_()
    judge(x, given).sum().backward()
    assert x.grad.abs().min() > 0


def test_several_layers_of_another_network_are_several_heads_and_places_are_averaged():
    torch.manual_seed(0)
    trunk, x = Denoiser(Actor(PictureDenoiser(width=8))), torch.randn(3, 1, 8, 8)
    judge = Projected(trunk, x, {}, features=f"{__name__}:Seen", layers=["conv", "flat"])
    found = judge(x, {})
    assert found.shape == (3, 2)
    places = judge.frozen.conv(x).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found[:, 0], judge.heads[0](places).mean((1, 2)))
    with pytest.raises(RecipeError, match="method.layers"):
        Projected(trunk, x, {}, features=f"{__name__}:Seen")
