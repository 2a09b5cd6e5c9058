"""Teacher and student: listening in a network, replacing what flows through it, stopping when enough was heard."""

import copy
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import BertConfig, BertModel
from transformers.modeling_outputs import SequenceClassifierOutput

from limbeck.actors import Student, Teacher
from limbeck.errors import RecipeError
from limbeck.views import View

BATCH = {"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), "id": torch.arange(4)}


class Net(nn.Module):
    """Four layers that count how often they run."""

    def __init__(self, returns=lambda logits, h: logits):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head, self.drop = nn.Linear(6, 3), nn.Dropout(0.5)
        self.returns, self.ran, self.fails = returns, Counter(), False

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            self.ran[i] += 1
            x = layer(x).tanh()
        if self.fails:
            raise ZeroDivisionError
        self.ran["head"] += 1
        return self.returns(self.head(self.drop(x)), x)


def student(**options):
    torch.manual_seed(0)
    made = Student(Net(), view="x", **options)
    made.model.eval()
    return made


RETURNS = {
    "a tensor": (lambda logits, h: logits, {}),
    "a tuple": (lambda logits, h: (logits, h), {"logits": "output.0", "embedding": "output.1"}),
    "a dict": (lambda logits, h: {"logits": logits, "embedding": h}, {}),
    "a ModelOutput": (lambda logits, h: SequenceClassifierOutput(logits=logits, hidden_states=(h,)), {}),
    "a part of a ModelOutput": (
        lambda logits, h: SequenceClassifierOutput(logits=logits, hidden_states=(h,)),
        {"embedding": "output.hidden_states.0"},
    ),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_signals_of_every_kind_of_output(kind):
    returns, taps = RETURNS[kind]
    torch.manual_seed(0)
    net = Net(returns).eval()
    actor = Student(net, view="x", taps=taps | {"middle": "layers.1"})
    signals = actor(BATCH)
    h1 = net.layers[1](net.layers[0](BATCH["x"]).tanh())
    logits = net.head(net.layers[2](h1.tanh()).tanh())
    assert torch.equal(signals["middle"], h1)
    assert torch.equal(signals["logits"], logits)
    if "embedding" in taps or kind == "a dict":
        assert torch.equal(signals["embedding"], net.layers[2](h1.tanh()).tanh())


def test_outputs_are_replaced_by_name_or_whole():
    torch.manual_seed(0)
    actor = Student(Net(RETURNS["a tuple"][0]).eval(), view="x", taps=RETURNS["a tuple"][1])
    plain = actor(BATCH)
    changed = actor(BATCH, replace={"embedding": lambda h: h + 1})
    assert torch.equal(changed["embedding"], plain["embedding"] + 1)
    assert torch.equal(changed["logits"], plain["logits"])
    both = actor(BATCH, replace={"output": lambda pair: (pair[0] * 2, pair[1])})
    assert torch.equal(both["logits"], plain["logits"] * 2)


def test_a_real_transformer():
    config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=9)
    model = BertModel(config).eval()
    taps = {"second": "encoder.layer.1", "pooled": "output.pooler_output"}
    actor = Teacher(model, view=View(input_ids="words"), taps=taps)
    words = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    batch = {"words": words}
    signals, whole = actor(batch), model(words, output_hidden_states=True)
    assert torch.equal(signals["second"], whole.hidden_states[2])
    assert torch.equal(signals["pooled"], whole.pooler_output)
    assert torch.equal(signals["last_hidden_state"], whole.last_hidden_state)
    zeroed = actor(batch, replace={"second": torch.zeros_like})
    assert not torch.equal(zeroed["pooled"], signals["pooled"])
    assert torch.equal(actor(batch)["pooled"], signals["pooled"])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda a: a.tap("hint", "layer.1"), r"tap 'layer\.1': Net has no such place\. Did you mean 'layers\.1'\?"),
        (lambda a: a.tap("middle", "layers.2"), r"'middle' already names layers\.1; give layers\.2 another name"),
        (lambda a: a(BATCH, replace={"midle": abs}), r"no tap 'midle' to replace\. Did you mean 'middle'\?"),
        (lambda a: a(BATCH, until="midle"), r"no tap 'midle' to stop at\. Did you mean 'middle'\?"),
        (lambda a: a({"y": BATCH["x"]}), r"view 'x': the batch has y"),
        (lambda a: a(BATCH)["hint"], r"no signal 'hint'\. There is: logits, middle"),
    ],
)
def test_mistakes_are_answered_with_what_there_is(call, sentence):
    with pytest.raises(RecipeError, match=sentence):
        call(student(taps={"middle": "layers.1"}))


def test_tapping_the_same_place_again_changes_nothing():
    actor = student(taps={"middle": "layers.1"})
    actor.tap("middle", "layers.1")
    assert len(actor.model.layers[1]._forward_hooks) == 1


def test_a_replacement_is_seen_behind_it_and_gone_afterwards():
    actor = student(taps={"middle": "layers.1", "into": "layers.1:input", "last": "layers.2"})
    plain, net = actor(BATCH), actor.model
    before = copy.deepcopy(net.state_dict())
    for name in ("middle", "into"):
        changed = actor(BATCH, replace={name: lambda h: h * 0.5})
        assert torch.equal(changed[name], plain[name] * 0.5)
        assert not torch.equal(changed["last"], plain["last"])
    halved = net.layers[1](plain["into"] * 0.5)
    assert torch.equal(changed["middle"], halved)
    assert torch.equal(changed["last"], net.layers[2](halved.tanh()))
    again = actor(BATCH)
    assert all(torch.equal(again[n], plain[n]) for n in plain)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert torch.equal(net(BATCH["x"]), plain["logits"])  # called on its own, the network is as it was


def test_nothing_is_left_behind_when_something_raises_inside():
    actor = student(taps={"middle": "layers.1"})
    plain = actor(BATCH)

    def broken(feature):
        raise KeyError("inside a replacement")

    with pytest.raises(KeyError, match="inside a replacement"):
        actor(BATCH, replace={"middle": broken})
    actor.model.fails = True
    with pytest.raises(ZeroDivisionError):
        actor(BATCH, replace={"middle": torch.zeros_like})
    actor.model.fails = False
    assert not actor._recorder.visits
    again = actor(BATCH)
    assert all(torch.equal(again[n], plain[n]) for n in plain)


def test_a_teacher_is_given_back_as_it_was_also_when_something_raises_inside():
    torch.manual_seed(0)
    teacher = Teacher(Net(), view="x")
    teacher.model.train()
    teacher.model.layers[1].eval()
    teacher.model.fails = True
    with pytest.raises(ZeroDivisionError):
        teacher(BATCH)
    assert torch.is_grad_enabled()
    assert [m.training for m in teacher.model.modules()] == [True, True, True, False, True, True, True]
    assert [p.requires_grad for p in teacher.model.parameters()] == [True] * 8


def test_stopping_early_skips_the_later_layers_and_hears_the_same():
    actor = student(taps={"first": "layers.0", "middle": "layers.1"})
    whole, net = actor(BATCH), actor.model
    for call in ({"until": "middle"}, {"reads": {"middle"}}, {"reads": ["first", "middle"]}):
        net.ran.clear()
        part = actor(BATCH, **call)
        assert net.ran == {0: 1, 1: 1}
        assert torch.equal(part["middle"], whole["middle"])
        assert torch.equal(part["first"], whole["first"])
        assert "logits" not in part
    net.ran.clear()
    actor(BATCH, reads={"middle", "logits"})
    assert net.ran == {0: 1, 1: 1, 2: 1, "head": 1}


def test_a_network_that_swallows_exceptions_is_stopped_all_the_same():
    class Careful(Net):
        def forward(self, x):
            try:
                return super().forward(x)
            except Exception:
                return torch.zeros(len(x), 3)

    actor = Student(Careful().eval(), view="x", taps={"middle": "layers.1"})
    actor(BATCH)
    assert set(actor(BATCH, until="middle")) == {"middle"}


def test_what_was_never_run_whole_is_not_stopped():
    """How often a tap is passed is known after the first whole pass; until then nothing is cut short."""
    actor = student(taps={"middle": "layers.1"})
    actor(BATCH, reads={"middle"})
    assert actor.model.ran["head"] == 1
    actor(BATCH, reads={"middle"})
    assert actor.model.ran["head"] == 1


def test_a_layer_in_a_loop_gives_its_last_value_however_long_the_loop():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(3, 3)

        def forward(self, steps):
            h = torch.ones(1, 3)
            for _ in range(steps):
                h = self.cell(h)
            return h

    actor = Student(Loop(), view="steps", taps={"h": "cell"})
    for steps in (2, 5, 1):
        assert torch.equal(actor({"steps": steps}, reads={"h"})["h"], actor.model(steps))


def test_a_shared_layer_is_found_under_each_of_its_names():
    net = Net().eval()
    net.layers[2] = net.layers[0]
    actor = Student(net, view="x", taps={"first": "layers.0", "third": "layers.2"})
    signals = actor(BATCH)
    assert torch.equal(signals["first"], signals["third"])  # one module: what it gave last
    assert torch.equal(signals["logits"], net(BATCH["x"]))


def test_two_actors_listen_in_one_network_without_hearing_each_other():
    net = Net().eval()
    a, b = Student(net, view="x", taps={"h": "layers.0"}), Teacher(net, view="x", taps={"h": "layers.1"})
    plain = a(BATCH)["logits"]
    assert not torch.equal(b(BATCH, replace={"h": torch.zeros_like})["logits"], plain)
    assert torch.equal(a(BATCH)["logits"], plain)
    inside = a(BATCH, replace={"h": lambda h: b(BATCH)["h"]})  # one actor inside the other's pass
    assert torch.equal(inside["h"], b(BATCH)["h"])


def test_a_deep_copy_of_the_network_is_on_its_own():
    actor = student(taps={"middle": "layers.1"})
    twin = copy.deepcopy(actor.model)
    with torch.no_grad():
        twin.layers[1].weight.zero_()
    plain = actor(BATCH)["middle"].clone()
    visits = []
    actor(BATCH, replace={"middle": lambda h: (visits.append(twin(BATCH["x"])), h)[1]})
    assert len(visits) == 1
    assert torch.equal(actor(BATCH)["middle"], plain)
    assert not torch.equal(visits[0], actor(BATCH)["logits"])
    other = Student(twin, view="x", taps={"middle": "layers.1"})
    assert torch.equal(other(BATCH)["middle"], twin.layers[1].bias.expand(4, -1))
    assert torch.equal(actor(BATCH)["middle"], plain)


def test_a_deep_copy_of_the_actor_listens_in_its_own_network():
    actor = student(taps={"middle": "layers.1"})
    twin = copy.deepcopy(actor)
    with torch.no_grad():
        twin.model.layers[1].weight.zero_()
    assert torch.equal(twin(BATCH)["middle"], twin.model.layers[1].bias.expand(4, -1))
    assert not torch.equal(actor(BATCH)["middle"], twin(BATCH)["middle"])


def test_after_an_exchange_of_layers_one_listens_again():
    actor = student(taps={"middle": "layers.1"})
    actor(BATCH)
    old, actor.model.layers[1] = actor.model.layers[1], nn.Linear(6, 6)
    with pytest.raises(RecipeError, match=r"'middle' \(layers\.1\) was to be replaced, .* listen_again"):
        actor(BATCH, replace={"middle": torch.zeros_like})
    actor.listen_again()
    assert not old._forward_hooks
    x = actor.model.layers[0](BATCH["x"]).tanh()
    assert torch.equal(actor(BATCH)["middle"], actor.model.layers[1](x))


def test_frozen_through_and_learning():
    torch.manual_seed(0)
    teacher, x = Teacher(Net(), view="x"), BATCH["x"].clone().requires_grad_()
    batch = BATCH | {"x": x}
    teacher.model.train()
    frozen = teacher(batch)["logits"]
    assert not frozen.requires_grad
    assert torch.equal(frozen, teacher(batch)["logits"])  # no dropout
    teacher.mode = "through"
    through = teacher(batch)["logits"]
    assert torch.equal(through, frozen)
    assert torch.autograd.grad(through.sum(), x)[0].abs().sum() > 0
    teacher.mode, teacher.learning = "frozen", True
    assert teacher(batch)["logits"].requires_grad
    assert not torch.equal(teacher(batch)["logits"], frozen)  # dropout, as in any training


def test_the_probe_tells_shapes_and_changes_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    net[2].eval()
    actor = Student(net, view="x", taps={"h": "0"})
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    assert actor.probe(BATCH) == {"h": (5,), "logits": (5,)}
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.modules()] == [True, True, True, False]


def test_a_view_follows_from_the_parameters_of_forward():
    class TwoInputs(nn.Module):
        def forward(self, image, audio, scale=1.0):
            return (image + audio) * scale

    actor = Student(TwoInputs())
    assert actor.look_at(["label", "audio", "image", "id"]) == View(image="image", audio="audio")
    with pytest.raises(RecipeError, match=r"forward of TwoInputs takes image, audio, scale, the data have image"):
        Student(TwoInputs()).look_at(["image"])


def test_dtypes_by_name():
    assert Student(Net(), view="x", dtype="bf16").model.head.weight.dtype == torch.bfloat16
    with pytest.raises(RecipeError, match=r"student\.dtype 'bf61' is not known\. Did you mean 'bf16'\?"):
        Student(Net(), view="x", dtype="bf61")


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_set_of_replacements_is_reversible(data):
    actor = student(taps={f"{end}{i}": f"layers.{i}{end}" for i in range(3) for end in ("", ":input")})
    plain = actor(BATCH)
    chosen = data.draw(st.sets(st.sampled_from(sorted(actor.paths)), min_size=1))
    scale = data.draw(st.floats(-2, 0.9))
    changed = actor(BATCH, replace={name: lambda h: h * scale for name in chosen})
    assert not torch.equal(changed["logits"], plain["logits"])
    again = actor(BATCH)
    assert all(torch.equal(again[n], plain[n]) for n in plain)
