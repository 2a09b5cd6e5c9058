"""Several surgeries on how a network is asked: in any order each of them is heard, in copies, in what ships, and folded into the weights."""

import copy
import json
from itertools import permutations

import pytest
import torch
from attending import Attending
from torch import nn

from limbeck.actors import Student
from limbeck.diffusion.around import lay_around
from limbeck.diffusion.further import constants, folded, hear
from limbeck.diffusion.negative import subtract
from limbeck.diffusion.network import Plain
from limbeck.diffusion.styles import learn_styles
from limbeck.errors import RecipeError
from limbeck.sources import operate, rebuild, save_weights

X, T = torch.tensor([[0.3, -1.0], [1.0, 0.2], [-0.4, 0.1]]), torch.tensor([0.2, 0.5, 1.0])
GIVEN = {"condition": torch.tensor([0, 1, 2])}
FURTHER = {
    "scale": {"scale": torch.tensor([1.0, 2.0, 3.0])},
    "style": {"style": torch.tensor([1, 0, 1])},
    "negative": {"negative_condition": torch.tensor([2, 2, 0]), "strength": torch.tensor([0.4, 0.5, 1.0])},
}
SURGERIES = {
    "scale": ("limbeck.diffusion.further:hear", {"defaults": {"scale": 2.0}}),
    "style": ("limbeck.diffusion.styles:learn_styles", {"usual": [0.25, 0.75]}),
    "negative": ("limbeck.diffusion.negative:subtract", {}),
}


def network():
    torch.manual_seed(0)
    return Attending()


def operated(order):
    """A network with these surgeries, and something learnt by each."""
    student = Student(network(), view=["x", "label"])
    for name in order:
        operate(student.source, SURGERIES[name][0], SURGERIES[name][1])
    model, g = student.model, torch.Generator().manual_seed(1)
    with torch.no_grad():
        if hasattr(model, "numbers"):
            model.numbers.layers["scale"].weight.normal_(generator=g)
        if hasattr(model, "styles"):
            model.styles.rows.copy_(torch.randn(2, 8, generator=torch.Generator().manual_seed(2)))
    return student


def asked(model, *names):
    return model.predict(X, T, **GIVEN, **{k: v for name in names for k, v in FURTHER[name].items()})


@pytest.mark.parametrize("order", list(permutations(SURGERIES)), ids="-".join)
def test_in_any_order_each_is_heard_as_it_is_alone(order):
    model = operated(order).model
    together = asked(model, *SURGERIES)
    reference = operated(tuple(SURGERIES)).model
    torch.testing.assert_close(together, asked(reference, *SURGERIES))
    for name in SURGERIES:
        alone = operated([name]).model
        others = [n for n in SURGERIES if n != name]
        assert not torch.allclose(asked(model, *others), together), name
        if name == "negative":  # without a word it changes nothing; the others have their defaults
            torch.testing.assert_close(asked(alone), asked(network()))
    torch.testing.assert_close(asked(model), asked(reference))


def test_what_is_added_to_the_time_adds_up():
    """Numbers and styles are both added behind one layer: the sum of their constants is what a moved bias says."""
    model = operated(("scale", "style")).model
    moved = network()
    with torch.no_grad():
        for part in constants(model):
            moved.time.layer.bias.add_(part.constant())
    torch.testing.assert_close(asked(model), asked(moved))
    assert not torch.allclose(asked(model), asked(network()))


@pytest.mark.parametrize("order", [("scale", "negative", "style"), ("style", "scale", "negative")], ids="-".join)
def test_copies_and_shipped_students_hear_all_of_them(order, tmp_path):
    student = operated(order)
    before = asked(student.model, *SURGERIES)
    twin = copy.deepcopy(student.model)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.5)
    assert not torch.allclose(asked(twin, *SURGERIES), before)
    torch.testing.assert_close(asked(student.model, *SURGERIES), before)  # a copy asks itself
    save_weights(student.model, tmp_path / "model.safetensors")
    (tmp_path / "limbeck.json").write_text(json.dumps({"surgery": student.source.surgery}))
    again = network()
    rebuild(again, tmp_path)
    torch.testing.assert_close(asked(again, *SURGERIES), before)


def test_folded_a_plain_network_says_the_same_and_nothing_is_left():
    student = operated(tuple(SURGERIES))
    state = {k: v.clone() for k, v in student.model.state_dict().items()}
    plain = network()
    with folded(student.model):
        plain.load_state_dict({k: v for k, v in student.model.state_dict().items() if k in plain.state_dict()})
    torch.testing.assert_close(asked(plain), asked(student.model))
    assert all(torch.equal(v, state[k]) for k, v in student.model.state_dict().items())
    with pytest.raises(ZeroDivisionError), folded(student.model):
        raise ZeroDivisionError
    assert all(torch.equal(v, state[k]) for k, v in student.model.state_dict().items())


def test_a_layer_without_a_bias_has_no_place_for_it_and_is_left_as_it_is():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.clock, self.last = nn.Linear(1, 4, bias=False), nn.Linear(2, 4)

        def forward(self, x, t):
            return (self.last(x) * self.clock(t[:, None]))[:, :2]

    model = Plain(Own(), "flow", "velocity")
    hear(model, {"until": 0.5}, "network.clock")
    before = model.network.clock.weight.clone()
    with folded(model):
        assert torch.equal(model.network.clock.weight, before)
    assert [part.last[0].bias for part in constants(model)] == [None]


def test_a_surgery_that_is_repeated_is_heard_once():
    """As in a recipe of two stages with one method."""
    model = operated(tuple(SURGERIES)).model
    once = asked(model, *SURGERIES)
    subtract(model)
    hear(model, {"scale": 2.0})
    learn_styles(model, [0.25, 0.75])
    torch.testing.assert_close(asked(model, *SURGERIES), once)
    learn_styles(model, [1.0, 0.0])
    torch.testing.assert_close(
        asked(model), model.predict(X, T, **GIVEN, style=torch.zeros(3, dtype=torch.int64)), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(RecipeError, match="2 teachers, and now there are 3"):
        learn_styles(model, [1.0, 0.0, 0.0])


def test_the_last_that_is_laid_around_is_asked_first():
    model, heard = network(), []
    for name in ("inner", "outer"):

        def around(model, inner, x, t, name=name, **given):
            heard.append(name)
            return 2 * inner(x, t, **given)

        lay_around(model, around)
    torch.testing.assert_close(asked(model), 4 * asked(network()))
    assert heard == ["outer", "inner"]
