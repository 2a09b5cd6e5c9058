"""Rounded weights: bounds that hold for every weight, products that are of the rounded weights, sizes that are true."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.errors import RecipeError
from limbeck.models.quantising import GROUP, Packed, pack, quantise, size_of, unpack

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from small_models import llama

CPU = torch.device("cpu")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32, bias=False))


@given(rows=st.integers(1, 4), columns=st.integers(1, 100), seed=st.integers(0, 99), spread=st.floats(1e-4, 1e3))
def test_no_weight_is_off_by_more_than_half_a_step(rows, columns, seed, spread):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    codes, low, scale = pack(weight)
    groups = -(-columns // GROUP)
    assert codes.dtype == torch.uint8
    assert codes.shape == (rows, groups * GROUP // 2)
    assert low.shape == scale.shape == (rows, groups, 1)
    back = unpack(codes, low, scale)[:, :columns]
    steps = scale.expand(-1, -1, GROUP).flatten(1)[:, :columns]
    assert ((back - weight).abs() <= steps / 2 * (1 + 1e-9) + 1e-12 * spread).all()


def test_what_has_sixteen_levels_is_kept_exactly():
    levels = torch.arange(16.0) * 0.25 - 1.5
    weight = levels.repeat(3, 4)[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(unpack(*pack(weight))[:, :64], weight)
    constant = torch.full((2, 40), 0.3)
    assert torch.equal(unpack(*pack(constant))[:, :40], constant)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_packed_layer_multiplies_by_its_rounded_weights(dtype):
    layer = nn.Linear(50, 7).to(dtype)
    packed = Packed(layer)
    x = torch.randn(3, 2, 50, dtype=dtype)
    torch.testing.assert_close(packed(x), nn.functional.linear(x, packed.weight, layer.bias), rtol=0, atol=0)
    assert packed(x).dtype == dtype
    assert list(packed.parameters()) == []
    x.requires_grad_()
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad[0, 0], packed.weight.sum(0))


@pytest.mark.parametrize(("bits", "off", "share"), [("int8", 0.01, 0.3), ("int4", 0.12, 0.25)])
def test_a_network_answers_nearly_as_before_from_less_room(bits, off, share):
    model, before = net(), net()
    x = torch.randn(16, 64)
    assert quantise(model, bits, CPU) == 2
    with torch.no_grad():
        error = (model(x) - before(x)).norm() / before(x).norm()
    assert 0 < error < off
    weights = sum(p.numel() * 4 for p in before.parameters())
    assert size_of(before) == weights
    assert size_of(model) < share * weights
    assert not any(p.requires_grad for p in model.parameters() if p is not model[0].bias)
    torch.testing.assert_close(copy.deepcopy(model)(x), model(x))


def test_the_weights_of_eight_bits_are_the_codes_times_a_scale_per_output():
    model, before = net(), net()
    quantise(model, "int8", CPU)
    rounded = model[0](torch.eye(64)) - model[0].bias
    step = before[0].weight.abs().amax(1) / 127
    assert ((rounded.T - before[0].weight).abs() <= step.unsqueeze(1) * 0.51).all()


def test_the_head_of_a_language_model_is_left_alone():
    model, before = llama(), llama()
    assert quantise(model, "int4", CPU) == 7
    assert torch.equal(model.lm_head.weight, before.lm_head.weight)
    assert isinstance(model.model.layers[0].mlp.up_proj, Packed)
    ids = torch.tensor([[2, 3, 4]])
    assert 0 < (model(ids).logits - before(ids).logits).abs().max() < 2


def test_what_cannot_be_rounded(monkeypatch):
    with pytest.raises(RecipeError, match="Sequential has no linear layers to round"):
        quantise(nn.Sequential(nn.Conv2d(1, 1, 1)), "int4", CPU)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(RecipeError, match=r"quantize=int8 needs torchao .*Or teacher\.quantize=int4"):
        quantise(net(), "int8", CPU)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match=r"quantize=nf4 needs bitsandbytes .*pip install bitsandbytes"):
        quantise(net(), "nf4", CPU)


def test_normal_floats_of_bitsandbytes():
    pytest.importorskip("bitsandbytes")
    model, before = net(), net()
    quantise(model, "nf4", CPU)
    x = torch.randn(16, 64)
    with torch.no_grad():
        error = (model(x) - before(x)).norm() / before(x).norm()
    assert 0 < error < 0.15
