"""Calibration figures: closed forms, saturation, and bins that add up to the error."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.evaluation import calibration


def coins(confidences: list[float]) -> torch.Tensor:
    """Two-class logits whose first class has these probabilities."""
    p = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], 1)


def test_error_by_hand():
    logits = coins([0.95, 0.95, 0.95, 0.55])
    target = torch.tensor([0, 0, 1, 1])
    # bin of 0.95: 3 of 4 samples, 2/3 right; bin of 0.55: 1 of 4, none right
    exact = 0.75 * (0.95 - 2 / 3) + 0.25 * 0.55
    assert calibration.ece(logits, target) == pytest.approx(exact, abs=1e-6)
    assert calibration.figures(logits, target)["ece"] == calibration.ece(logits, target, bins=15)
    brier = (2 * 2 * 0.05**2 + 2 * 0.95**2 + 2 * 0.55**2) / 4
    assert calibration.brier(logits, target) == pytest.approx(brier, abs=1e-12)


def test_perfectly_calibrated_coin():
    logits = coins([0.75] * 4)
    target = torch.tensor([0, 0, 0, 1])
    assert calibration.ece(logits, target) == pytest.approx(0, abs=1e-6)


def test_certainty_belongs_to_the_last_bin():
    logits = torch.tensor([[1e4, 0.0], [1e4, 0.0], [3.0, 0.0]])
    target = torch.tensor([0, 1, 0])
    last = calibration.reliability(logits, target, bins=10)[-1]
    assert (last.low, last.high, last.count) == (0.9, 1.0, 3)
    assert last.accuracy == pytest.approx(2 / 3)
    assert calibration.ece(logits, target, bins=10) == pytest.approx(last.confidence - 2 / 3, abs=1e-6)


def test_limits_of_brier():
    sure = torch.tensor([[1e4, 0.0]])
    assert calibration.brier(sure, torch.tensor([0])) == 0.0
    assert calibration.brier(sure, torch.tensor([1])) == 2.0
    assert calibration.brier(torch.zeros(1, 4), torch.tensor([2])) == pytest.approx(0.75)


@given(st.integers(1, 60), st.integers(2, 5), st.sampled_from([1, 4, 15]), st.integers(0, 10**6))
def test_bins_hold_every_sample_and_give_the_error(samples, classes, bins, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(samples, classes, generator=generator)
    target = torch.randint(classes, (samples,), generator=generator)
    parts = calibration.reliability(logits, target, bins=bins)
    assert len(parts) == bins
    assert sum(part.count for part in parts) == samples
    assert all(math.isnan(part.accuracy) == (part.count == 0) for part in parts)
    filled = [part for part in parts if part.count]
    assert all(part.low - 1e-12 <= part.confidence <= part.high + 1e-12 for part in filled)
    error = sum(part.count / samples * abs(part.accuracy - part.confidence) for part in filled)
    assert calibration.ece(logits, target, bins=bins) == pytest.approx(error, abs=1e-6)
