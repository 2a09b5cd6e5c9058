"""Tasks of language models: the loss per token, and figures from sums over tokens and bytes."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from limbeck import RecipeError, Task
from limbeck.evaluation import quality
from limbeck.losses.linear.choosing import most_probable
from limbeck.signals import Projection, Signals


def case(rows: int, length: int, classes: int, seed: int) -> tuple[Projection, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, 5, generator=draw, dtype=torch.float64)
    weight, bias = (torch.randn(classes, *more, generator=draw, dtype=torch.float64) for more in ((5,), ()))
    target = torch.randint(-1, classes, (rows, length), generator=draw)
    target[target < 0] = -100
    sizes = torch.randint(1, 9, (rows,), generator=draw)
    batch = {"target": target, "answer": target >= 0, "answer_bytes": sizes, "id": torch.arange(rows)}
    return Projection(hidden, weight, bias, scale=0.7, softcap=3.0), batch


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_the_loss_is_the_mean_over_the_tokens_that_count(rows, length, classes, seed):
    logits, batch = case(rows, length, classes, seed)
    plain = logits.materialise()
    counted = batch["answer"]
    expected = F.cross_entropy(plain[counted], batch["target"][counted]) if counted.any() else torch.zeros(())
    for given_logits in (logits, plain):
        loss = Task("text").loss(Signals(logits=given_logits), batch)
        assert loss.total().item() == pytest.approx(expected.item(), abs=1e-9)
        assert loss.parts["task"].mask is batch["answer"]  # the very column: it is counted before the forward pass


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.integers(0, 99))
def test_outputs_are_sums_of_nats_tokens_and_hits(rows, length, classes, seed):
    logits, batch = case(rows, length, classes, seed)
    plain = logits.materialise()
    for given_logits in (logits, plain):
        sums, size = Task("chat").outputs(Signals(logits=given_logits), batch)
        for row in range(rows):
            counted = batch["answer"][row]
            right = batch["target"][row][counted]
            nats = F.cross_entropy(plain[row][counted], right, reduction="sum").item()
            hits = plain[row][counted].argmax(-1).eq(right).sum().item()
            assert sums[row].tolist() == pytest.approx([nats, counted.sum().item(), hits], abs=1e-4)
        assert torch.equal(size, batch["answer_bytes"])


def test_a_uniform_model_over_bytes_needs_eight_bits_per_byte():
    target = torch.randint(0, 256, (3, 10))
    batch = {"target": target, "answer": target >= 0, "answer_bytes": torch.full((3,), 10)}
    sums, size = Task("text").outputs(Signals(logits=torch.zeros(3, 10, 256)), batch)
    found = quality.figures("text", sums, size)
    assert found["bits_per_byte"] == pytest.approx(8)
    assert found["perplexity"] == pytest.approx(256, rel=1e-5)
    assert found["nll"] == pytest.approx(math.log(256), rel=1e-5)


def test_tokens_that_spell_two_bytes_each_halve_the_bits_per_byte():
    sums = torch.tensor([[10 * math.log(2), 10, 0]])
    assert quality.bits_per_byte(sums, torch.tensor([20])) == pytest.approx(0.5)
    assert quality.token_nll(sums, torch.tensor([20])) == pytest.approx(math.log(2))


def test_nothing_that_counts_is_no_figure_and_no_loss():
    batch = {
        "target": torch.full((2, 3), -100),
        "answer": torch.zeros(2, 3, dtype=torch.bool),
        "answer_bytes": torch.zeros(2),
    }
    signals = Signals(logits=torch.randn(2, 3, 5))
    assert Task("text").loss(signals, batch).total() == 0
    assert all(math.isnan(value) for value in quality.figures("text", *Task("text").outputs(signals, batch)).values())


def test_the_most_probable_class_is_found_in_chunks(monkeypatch):
    logits, batch = case(3, 4, 6, 1)
    whole = most_probable(logits, batch["answer"])
    monkeypatch.setattr("limbeck.losses.linear.choosing._ROOM", 7)
    assert torch.equal(most_probable(logits, batch["answer"]), whole)
    expected = logits.materialise().argmax(-1).where(batch["answer"], -1)
    assert torch.equal(whole, expected)


def test_direction_and_target_of_a_language_task():
    task = Task("chat")
    assert (task.target, task.mask, task.metric, task.higher_is_better) == ("target", "answer", "bits_per_byte", False)
    assert Task("text", metric="token_accuracy").higher_is_better
    with pytest.raises(RecipeError, match="not there yet"):
        Task("detection")
