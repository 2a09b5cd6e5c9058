"""Packed rows: nothing is lost or seen twice, and a model gives each document what it gives it alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from limbeck.errors import RecipeError
from limbeck.language.packing import attention_of, pack

SIZE = 23


@given(lengths=st.lists(st.integers(1, 20), max_size=60), window=st.integers(1, 70))
def test_every_row_is_packed_once_and_fits(lengths: list[int], window: int) -> None:
    packed = pack(lengths, 20, window=window)
    assert sorted(row for rows in packed for row in rows) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in rows) <= 20 for rows in packed)
    assert all(rows == sorted(rows) and rows[-1] // window == rows[0] // window for rows in packed)
    assert packed == pack(lengths, 20, window=window)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_no_two_packed_rows_would_fit_into_one(lengths: list[int]) -> None:
    """So more than half of the room is used, but for one row; and it is within 11/9 of the fewest rows (and 6/9)."""
    packed = pack(lengths, 20)
    loads = sorted(sum(lengths[row] for row in rows) for rows in packed)
    assert len(loads) < 2 or loads[0] + loads[1] > 20
    fewest = -(-sum(lengths) // 20)
    assert len(packed) <= max(2 * fewest, 1)


def test_the_order_of_the_data() -> None:
    assert pack([5, 7, 5, 3], 10) == [[0, 2], [1, 3]]
    assert pack([5, 7, 5, 3], 10, window=2) == [[0], [1], [2, 3]]
    assert pack([], 10) == []
    assert pack([10], 10) == [[0]]


def test_the_best_place_is_the_fullest_that_takes_it() -> None:
    """7 and 6 open rows; 3 fills the first to the brim, and 4 the second."""
    assert pack([6, 7, 3, 4], 10) == [[0, 3], [1, 2]]


def test_a_row_that_does_not_fit() -> None:
    with pytest.raises(RecipeError, match="A row of 11 tokens does not fit into packed rows of 10"):
        pack([3, 11], 10)


segments = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3)


def filled(parts: list[list[int]]) -> Tensor:
    length = max(map(sum, parts))
    rows = [[number for number, one in enumerate(row) for _ in range(one)] for row in parts]
    return torch.tensor([row + [-1] * (length - len(row)) for row in rows])


@given(parts=segments)
def test_who_may_look_where(parts: list[list[int]]) -> None:
    segment = filled(parts)
    allowed = attention_of(segment)
    batch, length = segment.shape
    assert allowed.shape == (batch, 1, length, length)
    for row in range(batch):
        for at in range(length):
            for other in range(length):
                same = segment[row, at] == segment[row, other] >= 0
                assert allowed[row, 0, at, other] == ((same and other <= at) or at == other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_as_a_number_to_add(dtype: torch.dtype) -> None:
    segment = torch.tensor([[0, 0, 1, -1]])
    added = attention_of(segment, dtype)
    assert added.dtype == dtype
    assert torch.equal(added == 0, attention_of(segment))
    assert (added[added != 0] == torch.finfo(dtype).min).all()
    assert added.float().softmax(-1).isfinite().all()
    assert torch.allclose((added.float().softmax(-1) > 0).float(), attention_of(segment).float())


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "vocab_size": SIZE}
CONFIGS = {
    "llama": LlamaConfig(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **SMALL),
    "qwen2": Qwen2Config(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, **SMALL),
    "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=4, n_positions=32, vocab_size=SIZE, bos_token_id=0, eos_token_id=0),
}


def network(name: str, attention: str) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    for weight in model.parameters():  # far from the flat beginning, so that a wrong mask would show
        nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize(("attention", "kind"), [("sdpa", "bool"), ("sdpa", "float"), ("eager", "float")])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_packed_equals_alone(name: str, attention: str, kind: str) -> None:
    """Logits of every token, and gradients of every weight, to 1e-5."""
    model = network(name, attention)
    parts = [[3, 5, 2], [7], [1, 4]]
    texts = [[torch.randint(SIZE, (one,)) for one in row] for row in parts]
    segment = filled(parts)
    length = segment.shape[1]
    ids = torch.stack([nn.functional.pad(torch.cat(row), (0, length - sum(map(len, row)))) for row in texts])
    places = torch.stack(
        [
            nn.functional.pad(torch.cat([torch.arange(len(t)) for t in row]), (0, length - sum(map(len, row))))
            for row in texts
        ]
    )
    weight = torch.randn(SIZE)
    mask = attention_of(segment, torch.bool if kind == "bool" else torch.float32)

    packed = model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits
    (packed[segment >= 0] @ weight).sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    alone = [model(input_ids=text[None], use_cache=False).logits[0] for row in texts for text in row]
    sum((one @ weight).sum() for one in alone).backward()

    found = [packed[r][segment[r] == n] for r, row in enumerate(parts) for n in range(len(row))]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert together
    for n, p in model.named_parameters():
        if p.grad is not None:
            scale = p.grad.abs().max().clamp(min=1)
            torch.testing.assert_close(together[n] / scale, p.grad / scale, atol=1e-5, rtol=1e-4)
    assert packed.isfinite().all()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_wrong_mask_would_show(name: str) -> None:
    """Without the mask, or with places that do not begin again, the second document comes out otherwise."""
    model = network(name, "sdpa")
    texts = [torch.randint(SIZE, (4,)), torch.randint(SIZE, (5,))]
    segment, ids = filled([[4, 5]]), torch.cat(texts)[None]
    places = torch.cat([torch.arange(4), torch.arange(5)])[None]
    with torch.no_grad():
        alone = model(input_ids=texts[1][None]).logits[0]
        unmasked = model(input_ids=ids, position_ids=places, attention_mask=torch.ones_like(ids), use_cache=False)
        on = model(input_ids=ids, attention_mask=attention_of(segment), use_cache=False)
    assert (unmasked.logits[0, 4:] - alone).abs().max() > 1e-2
    if name == "gpt2":  # rotated places only matter as differences
        assert (on.logits[0, 4:] - alone).abs().max() > 1e-2
    else:
        torch.testing.assert_close(on.logits[0, 4:], alone, atol=1e-5, rtol=1e-5)
