"""What a model costs to run."""

import time

import pytest
import torch
from torch import nn

from limbeck.evaluation import speed


def test_latency_is_the_median_of_the_counted_calls():
    calls = []

    def work(example: int) -> None:
        calls.append(example)
        time.sleep(0.05 if len(calls) <= 2 else 0.002)  # the warm-up is slow and must not count

    found = speed.latency(work, 7, repeats=9, warmup=2)
    assert calls == [7] * 11
    assert found.repeats == 9
    assert 2.0 <= found.low <= found.median <= found.high
    assert found.median < 40


def test_one_repeat_is_its_own_quartiles():
    found = speed.latency(lambda: None, repeats=1, warmup=0)
    assert found.low == found.median == found.high == found.p95 >= 0
    with pytest.raises(ValueError, match="at least one repeat"):
        speed.latency(lambda: None, repeats=0)


def test_no_gradients_are_kept():
    layer = nn.Linear(2, 2)
    outputs = []
    speed.latency(lambda x: outputs.append(layer(x)), torch.ones(1, 2), repeats=1, warmup=0)
    assert not outputs[0].requires_grad


def test_parameters_and_bytes_of_a_linear_layer():
    layer = nn.Linear(3, 5)
    assert speed.parameters(layer) == 3 * 5 + 5
    assert speed.size_bytes(layer) == 4 * 20
    assert speed.size_bytes(layer.half()) == 2 * 20


def test_shared_weights_count_once_and_buffers_are_saved():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    assert speed.parameters(nn.Sequential(first, second)) == 16
    assert speed.size_bytes(nn.Sequential(first, second)) == 64
    norm = nn.BatchNorm1d(4)
    assert speed.parameters(norm) == 8
    assert speed.size_bytes(norm) == 4 * 16 + 8  # scale, shift, two running moments, and a count in int64


def test_p95_is_what_nineteen_of_twenty_calls_keep(monkeypatch):
    ticks = iter(x for i in range(21) for x in (0.0, i / 1000))  # 21 calls of 0, 1, ... 20 ms
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    found = speed.latency(lambda: None, repeats=21, warmup=0)
    assert (found.median, found.p95) == (pytest.approx(10), pytest.approx(19))
