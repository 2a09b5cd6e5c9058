"""Peak memory of a forward pass on the CPU: exact bytes of what is alive at one time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck.evaluation.memory import peak_bytes

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU's allocator rounds; the exact count is the CPU's"
)
X = torch.zeros(10, 100)


def test_two_neighbouring_layers_are_alive_at_once():
    net = nn.Sequential(nn.Linear(100, 60), nn.Tanh(), nn.Linear(60, 20))
    assert peak_bytes(lambda: net(X)) == 4 * 10 * (60 + 60)  # Tanh's input and output; both are gone before 20
    assert peak_bytes(lambda: net(X[:5])) == 4 * 5 * (60 + 60)


def test_what_is_let_go_counts_no_more():
    def frees():
        for _ in range(5):
            torch.ones(1000)
        return torch.ones(10)

    def keeps():
        return [torch.ones(1000) for _ in range(5)]

    assert peak_bytes(frees) <= 2 * 4000  # the new one is made before the name lets go of the old
    assert peak_bytes(keeps) == 5 * 4000


def test_views_and_work_in_place_cost_nothing():
    y = torch.rand(100)
    assert peak_bytes(lambda: X.view(-1)[3:].reshape(-1)) == 0
    assert peak_bytes(lambda: y.relu_()) == 0


def test_no_graph_is_kept():
    net = nn.Sequential(*[nn.Linear(100, 100) for _ in range(6)])
    assert peak_bytes(lambda: net(X)) == 2 * 4 * 1000
