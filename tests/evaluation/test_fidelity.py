"""Fidelity figures: zero for the same answers, closed forms, invariances, excluded classes."""

import math

import pytest
import torch

from limbeck.errors import RecipeError
from limbeck.evaluation import fidelity

S = torch.randn(20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
T = torch.randn(20, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_a_student_that_is_its_teacher():
    for dtype in (torch.float64, torch.bfloat16):
        found = fidelity.figures(S.to(dtype), S.to(dtype))
        assert found["agreement"] == 1.0
        assert found["kl_to_teacher"] == 0.0
        assert found["logit_correlation"] == pytest.approx(1.0, abs=1e-12)


def test_agreement_counts_equal_choices():
    student = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    teacher = torch.tensor([[5.0, 0], [0, 5], [0, 5], [0, 5]])
    assert fidelity.agreement(student, teacher) == 0.75


def test_kl_of_two_coins():
    p, q = 0.8, 0.3
    teacher = torch.tensor([[math.log(p), math.log(1 - p)]], dtype=torch.float64)
    student = torch.tensor([[math.log(q), math.log(1 - q)]], dtype=torch.float64)
    exact = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert fidelity.kl_to_teacher(student, teacher) == pytest.approx(exact, abs=1e-14)
    assert fidelity.kl_to_teacher(student * 3, teacher * 3, temperature=3) == pytest.approx(exact, abs=1e-14)


def test_excluded_classes():
    open_ = torch.zeros(1, 2)
    closed = torch.tensor([[0.0, -math.inf]])
    assert fidelity.kl_to_teacher(open_, closed) == pytest.approx(math.log(2), abs=1e-15)
    assert fidelity.kl_to_teacher(closed, open_) == math.inf
    assert fidelity.kl_to_teacher(closed, closed) == 0.0


def test_correlation_sees_neither_shift_nor_scale_but_sign():
    shift = torch.randn(20, 1, dtype=torch.float64)
    plain = fidelity.logit_correlation(S, T)
    assert fidelity.logit_correlation(3 * S + shift, 0.1 * T - shift) == pytest.approx(plain, abs=1e-12)
    assert fidelity.logit_correlation(-S, T) == pytest.approx(-plain, abs=1e-12)
    assert fidelity.logit_correlation(torch.tensor([[1.0, 0, -1]]), torch.tensor([[1.0, -2, 1]])) == pytest.approx(0)
    assert math.isnan(fidelity.logit_correlation(torch.ones(2, 3), T[:2, :3]))


def test_other_classes_are_refused():
    with pytest.raises(RecipeError, match=r"\[20, 4\].*teacher's \[20, 5\]"):
        fidelity.agreement(S[:, :4], T)
    with pytest.raises(RecipeError, match="sample by sample"):
        fidelity.figures(S[:0], T[:0])


def test_loyalties():
    assert fidelity.label_loyalty(S, T) == fidelity.agreement(S, T)
    assert fidelity.probability_loyalty(S, S) == 1.0
    assert fidelity.probability_loyalty(S, T) == pytest.approx(fidelity.probability_loyalty(T, S), abs=1e-15)
    apart = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-math.inf, 0.0]])
    assert fidelity.probability_loyalty(*apart) == 0.0  # nothing in common: one whole bit
    p, q = 0.9, 0.4
    student, teacher = (torch.tensor([[math.log(x), math.log(1 - x)]], dtype=torch.float64) for x in (p, q))
    m = (p + q) / 2
    js = sum(x * math.log2(x / y) / 2 for x, y in ((p, m), (1 - p, 1 - m), (q, m), (1 - q, 1 - m)))
    assert fidelity.probability_loyalty(student, teacher) == pytest.approx(1 - math.sqrt(js), abs=1e-12)
    assert fidelity.probability_loyalty(student + 3, teacher) == pytest.approx(1 - math.sqrt(js), abs=1e-12)
