"""How signals lie on disk: exact round trips, tails whose mass is kept, and what cannot be stored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.caching import packing
from limbeck.caching.packing import Top, Whole
from limbeck.errors import RecipeError


@given(
    rows=st.integers(0, 4),
    shape=st.lists(st.integers(1, 4), max_size=3),
    given_=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    dtype=st.sampled_from(["fp16", "bf16", "fp32"]),
)
def test_a_whole_signal_comes_back_rounded_once(rows, shape, given_, dtype):
    value = torch.randn(rows, *shape).to(given_)
    how = packing.of(value, "hint", dtype, "all")
    packed = how.pack(value)
    assert {name: t.dtype for name, t in packed.items()} == {"": packing.DTYPES[dtype]}
    assert torch.equal(how.unpack(packed), value.to(packing.DTYPES[dtype]).to(given_))
    assert how.unpack(packed).dtype == given_
    assert packing.read(how.spec()) == how


def test_whole_numbers_and_flags_are_kept_as_they_are():
    for value in (torch.tensor([[2**40], [-1]]), torch.tensor([[True], [False]])):
        how = packing.of(value, "tokens", "fp16", "all")
        assert torch.equal(how.unpack(how.pack(value)), value)
        assert not packing.lost(value, how.pack(value))


@given(
    classes=st.integers(2, 12), rows=st.integers(1, 5), tokens=st.integers(0, 3), scale=st.floats(0, 30), data=st.data()
)
def test_the_top_keeps_its_probabilities_and_the_tail_its_mass(classes, rows, tokens, scale, data):
    k = data.draw(st.integers(1, classes - 1))
    logits = scale * torch.randn(rows, *[3] * (tokens > 0), classes)
    how = packing.of(logits, "logits", "fp32", k)
    assert how == Top(tuple(logits.shape[1:]), "float32", "fp32", k)
    packed = how.pack(logits)
    assert packed[""].shape == packed["class"].shape == (*logits.shape[:-1], k)
    p, q = logits.double().softmax(-1), how.unpack(packed).double().exp()
    torch.testing.assert_close(q.sum(-1), torch.ones(logits.shape[:-1], dtype=torch.float64), rtol=0, atol=2e-6)
    top = p.topk(k, dim=-1)
    torch.testing.assert_close(q.gather(-1, packed["class"].long()), top.values, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(packed["rest"].double().exp(), 1 - top.values.sum(-1), rtol=1e-4, atol=2e-6)
    others = q.scatter(-1, packed["class"].long(), 0)
    tail = others.sum(-1, keepdim=True) / (classes - k)
    spread = tail.expand_as(others).scatter(-1, packed["class"].long(), 0)
    torch.testing.assert_close(others, spread, rtol=1e-5, atol=1e-9)  # evenly


def test_a_tail_far_below_rounding_is_stored_exactly():
    """1 - sum of the top would cancel to nothing: log(2 e^-40 / (1 + 2 e^-40)) = log 2 - 40."""
    logits = torch.tensor([[0.0, -40.0, -40.0]])
    packed = packing.of(logits, "logits", "fp16", 1).pack(logits)
    assert float(packed["rest"]) == pytest.approx(math.log(2) - 40, abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_few_bits_still_sum_to_one(dtype):
    logits = 4 * torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    how = packing.of(logits, "logits", dtype, 10)
    again = how.unpack(how.pack(logits)).exp()
    torch.testing.assert_close(again.sum(-1), torch.ones(64), rtol=0, atol=1e-6)
    assert float((again - logits.softmax(-1)).abs().max()) < {"fp16": 0.03, "bf16": 0.05}[dtype]


def test_a_uniform_teacher_comes_back_uniform_whatever_k():
    for k in (1, 3, 6):
        logits = torch.full((2, 7), 3.25)
        how = packing.of(logits, "logits", "fp32", k)
        torch.testing.assert_close(how.unpack(how.pack(logits)), torch.full((2, 7), -math.log(7)), rtol=0, atol=1e-6)


def test_classes_of_maps_stand_in_the_second_dimension():
    logits = torch.randn(2, 5, 3, 4)
    for name, segmentation in (("logits", False), ("mixed.logits", True)):
        how = packing.of(logits, name, "fp32", 2, segmentation)
        assert isinstance(how, Top)
        assert (how.dim, how.classes, packing.read(how.spec())) == (1, 5, how)
        again = how.unpack(how.pack(logits))
        assert again.shape == logits.shape
        assert torch.equal(again.argmax(1), logits.argmax(1))
        torch.testing.assert_close(again.exp().sum(1), torch.ones(2, 3, 4))


def test_excluded_classes_stay_excluded():
    logits = torch.tensor([[1.0, 2.0, -math.inf, -math.inf]])
    whole = packing.of(logits, "logits", "fp16", "all")
    assert torch.equal(whole.unpack(whole.pack(logits)), logits)
    assert not packing.lost(logits, whole.pack(logits))
    top = packing.of(logits, "logits", "fp32", 2)
    again = top.unpack(top.pack(logits))
    torch.testing.assert_close(again.exp(), logits.softmax(-1))
    assert again[0, 2:].isneginf().all()


def test_top_k_concerns_logits_that_have_more_classes():
    value = torch.randn(2, 5)
    assert isinstance(packing.of(value, "hint", "fp16", 2), Whole)
    assert isinstance(packing.of(value, "logits", "fp16", 5), Whole)
    assert isinstance(packing.of(value, "both.logits", "fp16", 4), Top)


def test_what_cannot_be_stored_is_seen():
    for bad, dtype in ((math.nan, "fp32"), (1e5, "fp16")):
        value = torch.tensor([[1.0], [bad]])
        assert packing.lost(value, packing.of(value, "hint", dtype, "all").pack(value))
        assert not packing.lost(value[:1], packing.of(value, "hint", dtype, "all").pack(value[:1]))
    large = torch.tensor([[1e5]])
    assert not packing.lost(large, packing.of(large, "hint", "bf16", "all").pack(large))
    with pytest.raises(RecipeError, match="'words' is a list"):
        packing.of(["a"], "words", "fp16", "all")
