"""Answers in their places, and the mass of the rest."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.teachers.sketching import sketch, spans


def test_texts_are_runs_of_one_mark():
    assert spans(torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])) == [(0, 0, 2), (2, 0, 4)]
    assert spans(torch.tensor([[1, 1, 2, 0, 3, 3]])) == [(0, 0, 2), (0, 2, 3), (0, 4, 6)]
    assert spans(torch.zeros(2, 0, dtype=torch.int64)) == []


@given(st.integers(2, 9), st.integers(1, 4), st.integers(1, 12), st.integers(0, 99))
def test_nothing_of_the_mass_is_lost(classes, tokens, known, seed):
    g = torch.Generator().manual_seed(seed)
    log_p = torch.randn(tokens, classes, generator=g, dtype=torch.float64).log_softmax(-1)
    best = log_p.topk(min(known, classes), dim=-1)
    answer = {"ids": best.indices.tolist(), "log_probs": best.values.tolist()}
    found = sketch((2, tokens + 1), [(1, 0, tokens)], [answer], classes)
    assert found.shape == (2, tokens + 1, classes)
    total = found.log_probs.exp().sum(-1) + found.log_tail.exp()
    torch.testing.assert_close(total, torch.ones(2, tokens + 1), rtol=0, atol=1e-6)
    assert (found.log_tail[1, :tokens] == -math.inf).all() == (known >= classes)
    assert (found.log_probs[0] == -math.inf).all()
    found.checked()
    if known >= classes:
        torch.testing.assert_close(found.expand()[1, :tokens], log_p.float())


def test_positions_of_which_more_is_said_stand_beside_others():
    answer = {"ids": [[3], [], [1, 2, 0]], "log_probs": [[math.log(0.5)], [], [math.log(0.25)] * 3]}
    found = sketch((1, 3), [(0, 0, 3)], [answer], 4)
    assert found.ids.shape == (1, 3, 3)
    assert found.log_tail.exp()[0].tolist() == pytest.approx([0.5, 1.0, 0.25])
    assert found.known.sum(-1).tolist() == [[1, 0, 3]]


def test_rounding_that_adds_up_to_more_than_one_leaves_no_rest():
    answer = {"ids": [[0, 1]], "log_probs": [[math.log(0.6), math.log(0.401)]]}
    assert sketch((1, 1), [(0, 0, 1)], [answer], 4).log_tail.tolist() == [[-math.inf]]
    assert sketch((1, 2), [], [], 4).log_tail.tolist() == [[0.0, 0.0]]
