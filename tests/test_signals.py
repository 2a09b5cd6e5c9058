"""Names for what networks return, and places inside them."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.utils import ModelOutput

from limbeck.errors import RecipeError
from limbeck.signals import Place, Projection, Signals, Tap, named_tensors, put, select, signals_of_output, weighted_sum

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Output(ModelOutput):
    """As transformers return."""

    logits: torch.Tensor | None = None
    hidden_states: tuple | None = None


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.head = nn.Linear(3, 2)


def test_a_projection_is_the_product_it_stands_for():
    layer, hidden = nn.Linear(4, 9), torch.randn(2, 5, 4)
    signal = Projection(hidden, layer.weight, layer.bias)
    assert torch.equal(signal.materialise(), layer(hidden))
    assert signal.shape == layer(hidden).shape
    torch.testing.assert_close(Projection(hidden, layer.weight).materialise(), hidden @ layer.weight.T)


def test_an_unknown_signal_is_answered_with_the_nearest_one():
    with pytest.raises(RecipeError, match=r"no signal 'logit'\. Did you mean 'logits'\?"):
        Signals(logits=torch.zeros(1), hint=torch.zeros(1))["logit"]
    with pytest.raises(RecipeError, match=r"There are none"):
        Signals()["anything"]


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("output", Place("", (), False)),
        ("output.1", Place("", ("1",), False)),
        ("output.hidden_states.2", Place("", ("hidden_states", "2"), False)),
        ("layers.3", Place("layers.3", (), False)),
        ("layers.3.0", Place("layers.3", ("0",), False)),
        ("head:input", Place("head", (), True)),
    ],
)
def test_paths(path, place):
    assert Tap(path).resolve(Encoder()) == place


def test_a_submodule_called_output_is_itself():
    model = nn.Module()
    model.output = nn.Linear(2, 2)
    assert Tap("output").resolve(model) == Place("output", (), False)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("layer.3", r"tap 'layer\.3': Encoder has no such place\. Did you mean 'layers\.3'\?"),
        ("head:output", r"after a colon stands 'input' .* not 'output'"),
        ("nothing_like_it_at_all", r"There is: head, layers"),
    ],
)
def test_a_path_that_leads_nowhere_names_the_nearest(path, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Tap(path).resolve(Encoder())


VALUES = {
    "tuple": lambda: (torch.zeros(2), torch.ones(3)),
    "list": lambda: [torch.zeros(2), torch.ones(3)],
    "named": lambda: Pair(torch.zeros(2), torch.ones(3)),
    "dict": lambda: {"0": torch.zeros(2), "1": torch.ones(3)},
}


@pytest.mark.parametrize("kind", VALUES)
def test_put_replaces_one_part_and_writes_into_nothing(kind):
    value = VALUES[kind]()
    changed = put(value, ("1",), lambda part: part + 1)
    assert type(changed) is type(value)
    assert torch.equal(select(changed, ["1"]), torch.full((3,), 2.0))
    assert select(changed, ["0"]) is select(value, ["0"])
    assert torch.equal(select(value, ["1"]), torch.ones(3))


def test_put_into_a_model_output_and_deeper():
    value = Output(logits=torch.zeros(1), hidden_states=(torch.zeros(2), torch.zeros(3)))
    changed = put(value, ("hidden_states", "1"), lambda part: part + 1)
    assert isinstance(changed, Output)
    assert torch.equal(changed.hidden_states[1], torch.ones(3))
    assert torch.equal(changed["hidden_states"][1], torch.ones(3))
    assert torch.equal(value.hidden_states[1], torch.zeros(3))
    assert changed.logits is value.logits


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [(["lowgits"], "Did you mean 'logits'"), (["hidden_states", "5"], "part 5 was asked of a value of 1 parts")],
)
def test_a_part_that_is_not_there(keys, sentence):
    with pytest.raises(RecipeError, match=sentence):
        select({"logits": torch.zeros(1), "hidden_states": (torch.zeros(1),)}, keys)


def test_what_has_no_parts_cannot_have_one_replaced():
    @dataclass
    class Odd:
        logits: torch.Tensor

    odd = Odd(torch.zeros(1))
    assert select(odd, ["logits"]) is odd.logits
    with pytest.raises(RecipeError, match="a part of a Odd cannot be replaced"):
        put(odd, ("logits",), lambda x: x)
    with pytest.raises(RecipeError, match="a Odd has no part 'loss'"):
        select(odd, ["loss"])


def test_outputs_name_themselves():
    tensor = torch.zeros(2, 3)
    assert signals_of_output(tensor, "student") == {"logits": tensor}
    assert signals_of_output((tensor,), "student") == {"logits": tensor}
    assert signals_of_output((tensor, None), "student") == {"logits": tensor}
    assert set(signals_of_output({"logits": tensor, "more": (tensor, tensor), "n": 3}, "x")) == {
        "logits",
        "more.0",
        "more.1",
    }
    output = Output(logits=tensor, hidden_states=(tensor,))
    assert set(signals_of_output(output, "x")) == {"logits", "hidden_states.0"}
    texts = signals_of_output({"text": ["a", "b"], "empty": [], "mixed": ["a", 1]}, "x")
    assert texts == {"text": ["a", "b"]}


def test_an_unnamed_tuple_is_refused_with_the_names_to_give():
    """Message 10 of the API."""
    with pytest.raises(RecipeError) as error:
        signals_of_output((torch.zeros(64, 10), torch.zeros(64, 128)), "student")
    assert str(error.value) == (
        "the student returned a tuple of 2 tensors, [64, 10] and [64, 128]; name them: "
        "student.taps={logits: output.0, embedding: output.1}"
    )
    with pytest.raises(RecipeError, match="returned a float"):
        signals_of_output(1.0, "teacher")


@given(st.recursive(st.just(0), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=8))
def test_named_tensors_are_found_by_select_under_their_names(shape):
    def made(node):
        return torch.rand(2) if node == 0 else [made(inner) for inner in node]

    value = made(shape)
    for name, tensor in named_tensors(value).items():
        assert select(value, name.split(".") if name else []) is tensor


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_weighted_sum_of_projections_is_that_of_their_products(softcap):
    torch.manual_seed(0)
    one = Projection(torch.randn(2, 3, 4), torch.randn(7, 4), torch.randn(7), scale=0.5)
    other = Projection(torch.randn(2, 3, 5), torch.randn(9, 5), softcap=softcap)
    found = weighted_sum([(one, 0.3), (other, -2.0)], classes=6)
    product = found.materialise() if isinstance(found, Projection) else found
    torch.testing.assert_close(product, 0.3 * one.materialise()[..., :6] - 2 * other.materialise()[..., :6])
    assert isinstance(found, Projection) == (softcap is None)
