"""Discriminators on a network's features: points, maps and tokens; the trunk is somebody else's; what has no middle is refused."""

import pytest
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.diffusion.denoiser import Denoiser
from limbeck.diffusion.discriminator import Discriminator
from limbeck.diffusion.network import Plain
from limbeck.errors import RecipeError
from limbeck.models.toy import PictureDenoiser, PointDenoiser


@pytest.mark.parametrize("network", [PointDenoiser(width=8), PictureDenoiser(width=8)], ids=["points", "pictures"])
def test_one_number_per_sample_and_the_gradient_of_the_input(network):
    trunk = Denoiser(Student(network))
    x, t = torch.randn(3, *network.shape), torch.rand(3)
    judge = Discriminator(trunk, x, t, {})
    assert judge(x, t, {}).shape == (3,)
    x.requires_grad_()
    judge(x, t, {}).sum().backward()
    assert x.grad.abs().sum() > 0
    own = set(map(id, judge.parameters()))
    assert own.isdisjoint(map(id, network.parameters()))
    assert not any("trunk" in name for name in judge.state_dict())


def test_numbers_of_the_places_of_a_map_are_averaged():
    torch.manual_seed(0)
    trunk = Denoiser(Student(PictureDenoiser(width=8)))
    x, t = torch.randn(2, 1, 8, 8), torch.rand(2)
    judge = Discriminator(trunk, x, t, {})
    feature = trunk.feature("judged", x, t, {})
    assert feature.shape == (2, 16, 4, 4)
    each = [
        judge.output(nn.functional.silu(judge.norm(judge.hidden(feature[:, :, i, j]))))
        for i in range(4)
        for j in range(4)
    ]
    torch.testing.assert_close(judge(x, t, {}), torch.stack(each).mean(0).squeeze(1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.end = nn.Linear(3, 6), nn.Linear(6, 3)

    def forward(self, x, time):
        return self.end(self.body(x))


def test_tokens_and_a_place_that_was_named():
    trunk = Denoiser(Student(Plain(Tokens(), "flow", "velocity", shape=[5, 3])))
    x, t = torch.randn(2, 5, 3), torch.rand(2)
    with pytest.raises(RecipeError, match="`middle`"):
        Discriminator(trunk, x, t, {})
    judge = Discriminator(trunk, x, t, {}, path="network.body")
    assert judge.hidden.in_features == 6
    perm = torch.randperm(5)
    torch.testing.assert_close(judge(x[:, perm], t, {}), judge(x, t, {}))
