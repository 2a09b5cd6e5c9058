"""Adapters: nothing changes at first, only they learn, their formula, and the plain network after the merge."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from limbeck.actors import Student
from limbeck.engine import weights
from limbeck.engine.ema import MovingAverage
from limbeck.errors import RecipeError
from limbeck.models import lora

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from small_models import llama


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)).double()


def shaken(model, seed=0):
    """The model with adapters that do something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return model


@pytest.mark.parametrize("alpha", [None, 1.0, 6.0])
def test_an_adapter_adds_its_product(alpha):
    model, before = plain(), plain()
    x = torch.randn(4, 5, dtype=torch.float64)
    lora.adapt(model, rank=2, alpha=alpha)
    assert torch.equal(model(x), before(x))  # B is 0
    shaken(model)
    factor = 1.0 if alpha is None else alpha / 2
    expected = x
    for i in (0, 2):
        layer, own = model[i], before[i]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert (tuple(a.shape), tuple(b.shape)) == ((2, own.in_features), (own.out_features, 2))
        added = nn.functional.linear(expected, own.weight + factor * b @ a, own.bias)
        expected = before[1](added) if i == 0 else added
    torch.testing.assert_close(model(x), expected)


def test_only_adapters_learn_and_the_rest_does_after_the_merge():
    model, before = plain(), plain()
    lora.adapt(model, rank=2)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in learning)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 2 * (5 + 7) + 2 * (7 + 3)
    shaken(model)
    x = torch.randn(4, 5, dtype=torch.float64)
    given = model(x)
    assert lora.merge(model)
    torch.testing.assert_close(model(x), given)
    assert not torch.equal(model(x), before(x))
    assert list(model.state_dict()) == list(before.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert not lora.merge(model)
    assert lora.adapters(model) == {}


def test_what_was_frozen_before_stays_frozen():
    model = plain()
    model[2].weight.requires_grad_(False)
    lora.adapt(model, rank=1)
    lora.merge(model)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False]


def test_a_language_model_keeps_its_head_and_its_embedding():
    model = llama()
    lora.adapt(model, rank=2)
    adapted = {name.rpartition(".")[2] for name in lora.adapters(model)}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert type(model).__name__ == "LlamaForCausalLM"
    ids = torch.tensor([[2, 3, 4, 5]])
    given = shaken(model)(ids).logits
    lora.merge(model)
    torch.testing.assert_close(model(ids).logits, given, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == list(llama().state_dict())


def test_a_network_that_keeps_its_weights_the_other_way_round():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=16)).eval()
    before = copy.deepcopy(model)
    lora.adapt(model, rank=2, targets=["c_attn"])
    ids = torch.tensor([[2, 3, 4]])
    torch.testing.assert_close(model(ids).logits, before(ids).logits)
    given = shaken(model)(ids).logits
    assert not torch.allclose(given, before(ids).logits, atol=1e-3)
    lora.merge(model)
    torch.testing.assert_close(model(ids).logits, given)
    with pytest.raises(RecipeError, match="'lm_head' is the embedding too"):
        lora.adapt(before, targets=["lm_head"])


def classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    return BertForSequenceClassification(config)


def test_a_new_head_of_a_classifier_learns_whole():
    model = classifier()
    lora.adapt(model, rank=2)
    whole = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert whole == {"classifier.weight", "classifier.bias"}
    assert not any("classifier" in name for name in lora.adapters(model))
    other = classifier()
    lora.adapt(other, rank=2, targets=["query"], whole=["bert.pooler"])
    whole = {name for name, p in other.named_parameters() if p.requires_grad and "lora_" not in name}
    assert whole == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert list(lora.adapters(other)) == ["bert.encoder.layer.0.attention.self.query"]


def test_adapters_of_a_half_precision_network_are_in_full():
    model = plain().to(torch.bfloat16)
    lora.adapt(model, rank=2)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    assert model(torch.randn(2, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16
    lora.merge(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"targets": ["qproj"]}, r"student\.lora\.targets: there is no linear layer 'qproj'\. Did you mean 'q_proj'\?"),
        (
            {"whole": ["model.norn"]},
            r"student\.lora\.whole: there is no module 'model\.norn'\. Did you mean 'model\.norm'\?",
        ),
    ],
)
def test_layers_that_are_not_there(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        lora.adapt(llama(), **options)


def test_what_cannot_be_adapted(monkeypatch):
    with pytest.raises(RecipeError, match="has no linear layer for an adapter"):
        lora.adapt(nn.Sequential(nn.Conv2d(1, 1, 1)))
    model = plain()
    lora.adapt(model)
    with pytest.raises(RecipeError, match="has low-rank adapters already"):
        lora.adapt(model)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RecipeError, match=r"pip install 'limbeck\[lora\]'"):
        lora.adapt(plain())


def test_a_student_hears_its_layers_before_and_after():
    student = Student(plain(), view="x", taps={"first": "0", "logits": "output"}, lora={"rank": 2})
    batch = {"x": torch.randn(3, 5, dtype=torch.float64)}
    shaken(student.model)
    heard = student(batch)
    torch.testing.assert_close(heard["first"], student.model[0](batch["x"]))
    student.merge()
    torch.testing.assert_close(student(batch)["first"], heard["first"])
    torch.testing.assert_close(student(batch)["logits"], heard["logits"])
    student.merge()  # there is nothing left to do


def test_what_a_file_gives_back_is_in_no_checkpoint(tmp_path):
    model = plain()
    lora.adapt(model, rank=2, reloadable=True)
    taken = weights.take(model)
    assert all("lora_" in name for name in taken)
    base = {name: t.clone() for name, t in model.state_dict().items()}
    shaken(model, 1)
    weights.give(model, taken)
    assert all(torch.equal(t, base[name]) for name, t in model.state_dict().items())
    weights.give(model, {name: t + 1 for name, t in base.items()})  # a state of everything fits too
    assert all(torch.equal(t, base[name] + 1) for name, t in model.state_dict().items())
    with pytest.raises(RuntimeError, match="does not fit"):
        weights.give(model, {name: t for name, t in taken.items() if "lora_A" in name})

    drawn = plain()
    lora.adapt(drawn, rank=2)  # nobody else knows these weights
    assert weights.take(drawn).keys() == drawn.state_dict().keys()
    copied = copy.deepcopy(model)
    assert weights.elsewhere(copied) == weights.elsewhere(model) != frozenset()


def test_an_average_is_of_what_changes():
    model = plain()
    lora.adapt(model, rank=2, reloadable=True)
    average = MovingAverage(model, 0.5)
    assert all("lora_" in name for name in average.average)
    own = {name: t.clone() for name, t in model.state_dict().items()}
    shaken(model)
    average.update()
    keep = 2 / 11
    with average.in_place():
        for name, tensor in model.state_dict().items():
            drawn = tensor if "lora_" not in name else keep * own[name]
            other = 0 if "lora_" not in name else (1 - keep) * shaken(copy.deepcopy(model)).state_dict()[name]
            torch.testing.assert_close(tensor, drawn + other)
    again = MovingAverage(model, 0.5)
    again.load_state_dict(average.state_dict())
    assert all(torch.equal(again.average[name], t) for name, t in average.average.items())
