"""Further numbers of a network: nothing at first, then heard; defaults; copies, repetition, shipping; where none can be added."""

import copy

import pytest
import torch
from torch import nn

from limbeck.actors import Student
from limbeck.diffusion.further import folded, give, hear
from limbeck.diffusion.network import Plain
from limbeck.errors import RecipeError
from limbeck.models.toy import PictureDenoiser, PointDenoiser

T = torch.tensor([0.3, 0.7])


def network():
    torch.manual_seed(0)
    return PointDenoiser(width=8, classes=3)


def ask(model, **numbers):
    given = {"condition": torch.tensor([0, 1])} | {k: torch.tensor(v) for k, v in numbers.items()}
    return model.prediction(torch.ones(2, 2), T, given).value


def learnt(model, name="until"):
    """As after some training: the embedding says something."""
    with torch.no_grad():
        model.numbers.layers[name].weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def test_at_first_nothing_changes_and_later_each_sample_hears_its_own():
    model = network()
    before = ask(model)
    hear(model, {"until": 0.0})
    assert torch.equal(ask(model, until=[0.2, -0.9]), before)
    learnt(model)
    one, other = ask(model, until=[0.2, 0.4]), ask(model, until=[0.2, 0.5])
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])
    assert not torch.equal(ask(model, until=[0.2, 0.4]), ask(model, until=[-0.2, 0.4]))  # signs are heard


def test_what_nobody_gives_has_its_default():
    model = network()
    hear(model, {"until": 0.5})
    learnt(model)
    assert torch.equal(ask(model), ask(model, until=[0.5, 0.5]))
    hear(model, {"until": -1.0})  # again: another default, the same weights
    assert torch.equal(ask(model), ask(model, until=[-1.0, -1.0]))
    assert len(model.time._forward_hooks) == 1
    hear(model, {"scale": 3.0})
    learnt(model, "scale")
    assert torch.equal(ask(model), ask(model, until=[-1.0, -1.0], scale=[3.0, 3.0]))


def test_what_is_added_is_a_layer_on_waves():
    model = network()
    hear(model, {"until": 0.0})
    learnt(model)
    numbers, value = model.numbers, torch.tensor([0.2, 0.9])
    numbers.values = {"until": value}
    angles = value[:, None] * torch.logspace(-1, 1.5, 16)
    layer = numbers.layers["until"]
    expected = torch.cat([angles.sin(), angles.cos()], 1) @ layer.weight.T + layer.bias
    torch.testing.assert_close(numbers.added(None, (), torch.zeros(2, 8)), expected)


def test_a_copy_is_a_network_of_its_own():
    model = network()
    hear(model, {"until": 0.0})
    twin = copy.deepcopy(model)
    learnt(twin)
    assert not torch.equal(ask(twin), ask(model))
    assert twin.predict.args[0] is twin
    assert (twin.numbers.values, model.numbers.values) == ({}, {})
    learnt(model)
    torch.testing.assert_close(ask(twin, until=[0.1, 0.2]), ask(model, until=[0.1, 0.2]))


def test_folded_the_network_says_without_numbers_what_it_says_with_their_defaults():
    model = network()
    hear(model, {"until": 0.3, "scale": 2.0})
    learnt(model)
    learnt(model, "scale")
    twin = copy.deepcopy(model)
    expected, bias = ask(twin), twin.time.layer.bias.clone()
    plain = network()
    with folded(twin):
        plain.load_state_dict({k: v for k, v in twin.state_dict().items() if not k.startswith("numbers.")})
    assert torch.equal(twin.time.layer.bias, bias)
    torch.testing.assert_close(ask(plain), expected)
    assert not torch.allclose(ask(plain), ask(network()))
    with folded(plain):  # one that knows no further numbers
        torch.testing.assert_close(ask(plain), expected)


def test_it_learns_with_the_network():
    model = network()
    hear(model, {"until": 0.0})
    ask(model, until=[0.1, 0.2]).square().sum().backward()
    assert model.numbers.layers["until"].weight.grad.abs().sum() > 0
    assert {n for n, _ in model.named_parameters() if n.startswith("numbers")} == {
        "numbers.layers.until.weight",
        "numbers.layers.until.bias",
    }


def test_the_surgery_is_noted_and_can_be_repeated_from_plain_data():
    actor = Student(network())
    actor.look_at(["x", "label"])
    give(actor, {"until": 0.0}, None)
    (done,) = actor.source.surgery
    again = network()
    hear(again, **done["structure"])
    again.load_state_dict(learnt(actor.model).state_dict())
    assert torch.equal(ask(again, until=[0.1, 0.2]), ask(actor.model, until=[0.1, 0.2]))


class Own(nn.Module):
    """Somebody's network, with an embedding of its time in a place of its own."""

    def __init__(self):
        super().__init__()
        self.clock = nn.Sequential(nn.Linear(1, 4), nn.SiLU(), nn.Linear(4, 6))
        self.body = nn.Linear(2, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x, t):
        return self.last((self.body(x) + self.clock(t[:, None])).tanh())


def test_an_unknown_network_says_where_its_time_is():
    with pytest.raises(RecipeError, match="method.place"):
        hear(Plain(Own(), "flow", "velocity"), {"until": 0.0})
    with pytest.raises(RecipeError, match="network.nothing"):
        hear(Plain(Own(), "flow", "velocity"), {"until": 0.0}, "network.nothing")
    model = Plain(Own(), "flow", "velocity")
    hear(model, {"until": 0.0}, "network.clock")
    learnt(model)
    one, other = (model.prediction(torch.ones(2, 2), T, {"until": torch.full((2,), u)}).value for u in (0.1, 0.6))
    assert not torch.equal(one, other)


def test_pictures_hear_too_and_halves_stay_halves():
    model = PictureDenoiser(width=8)
    hear(model, {"until": 0.0})
    learnt(model)
    x = torch.randn(2, 1, 8, 8)
    assert model.prediction(x, T, {"until": T}).value.shape == x.shape
    model.bfloat16()
    assert model.predict(x.bfloat16(), T, until=T).dtype == torch.bfloat16


def test_a_unet_of_diffusers_hears():
    diffusers = pytest.importorskip("diffusers")
    from limbeck.models.adapters.companions import Companions
    from limbeck.models.adapters.diffusers_network import DiffusersNetwork

    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    model = DiffusersNetwork(net, Companions(scheduler=diffusers.DDPMScheduler())).eval()
    hear(model, {"until": 0.0})
    learnt(model)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([100.0, 500.0])
    one, other = (model.prediction(x, t, {"until": torch.full((2,), u)}).value for u in (0.1, 0.6))
    assert not torch.allclose(one, other)
