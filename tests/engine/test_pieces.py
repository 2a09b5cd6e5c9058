"""Cutting a batch, and finding how many pieces memory wants, without a trace."""

import copy
import weakref
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import random_state
from limbeck.engine.course import Course, settle
from limbeck.engine.divide import Divider
from limbeck.engine.pieces import cut, find_pieces, kept_bytes, rows
from limbeck.engine.processes import World
from limbeck.engine.settings import TrainSettings
from limbeck.engine.stepper import Stepper
from limbeck.engine.trainer import Situation
from limbeck.method import Progress, Update
from limbeck.methods.supervised import Supervised
from limbeck.objectives import Loss
from limbeck.tasks import Task


@given(st.integers(1, 30), st.integers(1, 40))
def test_pieces_are_runs_of_rows_of_nearly_one_size(count, pieces):
    batch = {"x": torch.arange(count), "text": [str(i) for i in range(count)], "scale": 3.0, "scalar": torch.tensor(1)}
    parts = cut(batch, pieces)
    assert len(parts) == min(count, pieces)
    assert torch.cat([p["x"] for p in parts]).tolist() == list(range(count))
    assert [t for p in parts for t in p["text"]] == batch["text"]
    assert {p["scale"] for p in parts} == {3.0}
    sizes = [rows(p) for p in parts]
    assert max(sizes) - min(sizes) <= 1


def test_pieces_are_views():
    batch = {"x": torch.arange(10.0)}
    assert all(p["x"].untyped_storage().data_ptr() == batch["x"].untyped_storage().data_ptr() for p in cut(batch, 3))


def test_batches_without_rows_or_of_two_lengths_are_refused():
    with pytest.raises(ValueError, match="holds no tensor with samples"):
        rows({"scale": 1.0})
    with pytest.raises(ValueError, match=r"different numbers of samples: a 2, b 3\. The first dimension"):
        rows({"a": torch.zeros(2), "b": [1, 2, 3]})


def test_bytes_are_those_that_autograd_keeps_beside_the_parameters():
    layer, x = nn.Linear(10, 20, bias=False), torch.randn(7, 10, requires_grad=True)
    assert kept_bytes(lambda: layer(x).exp()) == (7 * 10 + 20 * 10 + 7 * 20) * 4  # the input, the weight, the result
    assert kept_bytes(lambda: layer(x).exp(), besides=[layer.weight, x]) == 7 * 20 * 4
    with torch.no_grad():
        assert kept_bytes(lambda: layer(x).exp()) == 0


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 50))
def test_the_least_power_of_two_that_fits(count, per_row, limit):
    found = find_pieces(lambda pieces: -(-count // pieces) * per_row, limit, count)
    assert found == count or (-(-count // found) * per_row <= limit and found & (found - 1) == 0)
    assert found in (1, count) or -(-count // (found // 2)) * per_row > limit


class Noisy(nn.Module):
    """Keeps 100 numbers per row for the backward pass, draws random ones, and counts what it has seen."""

    def __init__(self):
        super().__init__()
        self.wide, self.norm, self.drop = nn.Linear(4, 100), nn.BatchNorm1d(100), nn.Dropout(0.5)
        self.out = nn.Linear(100, 3)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.wide(x)).tanh()))


def ready(**train):
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    split = TensorSplit({"x": torch.randn(32, 4, generator=g), "label": torch.randint(0, 3, (32,), generator=g)})
    train = {"epochs": 1, "batch_size": 32, "optimizer": "sgd"} | train
    where = Situation(
        Student(Noisy(), view="x"), None, Task("classification"), Data({"train": split}), TrainSettings(**train)
    )
    method = Supervised()
    settle(method, where)
    return method, where, split.__getitems__(range(32))


def test_trying_leaves_no_trace():
    method, where, batch = ready()
    with Stepper(method, where.settings, World(), pieces=0, limit=6_000) as stepper:
        before = copy.deepcopy(where.student.model.state_dict())
        state = torch.get_rng_state()
        trainee = stepper.trainees["student"]
        stepper._activate(trainee)
        found = stepper._find(Update("student", method.loss, batch), trainee)
        assert found in (8, 16)  # about five tensors of 100 numbers a row: 32 rows keep 64 kB
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(t, before[n]) for n, t in where.student.model.state_dict().items())
        assert all(p.grad is None for p in where.student.model.parameters())


def test_what_is_found_holds_for_the_stage_and_is_in_its_state():
    method, where, batch = ready()
    with Stepper(method, where.settings, World(), pieces=0, limit=6_000) as stepper, torch.no_grad():
        sizes = []

        def watched(piece):
            sizes.append(len(piece["id"]))
            return method.loss(piece)

        for step in range(2):
            sizes.clear()
            stepper.perform(Update("student", watched, batch), Progress(step, 2))
        assert len(sizes) == stepper.pieces
        assert stepper.pieces in (8, 16)
        assert sum(sizes) == 32


def test_without_a_limit_nothing_is_cut_on_a_cpu():
    method, where, batch = ready()
    with Stepper(method, where.settings, World(), pieces=0) as stepper, torch.no_grad():
        stepper.perform(Update("student", method.loss, batch), Progress())
        assert stepper.pieces == 1


@pytest.mark.parametrize(("micro_batch", "pieces"), [(32, 1), (16, 2), (5, 7), (1, 32)])
def test_micro_batch_counts_samples_at_once(micro_batch, pieces):
    seen = []

    class Watching(Supervised):
        def loss(self, batch):
            seen.append(len(batch["id"]))
            return super().loss(batch)

    _, where, _ = ready(micro_batch=micro_batch)
    where.student.model.norm = nn.Identity()
    Course(Watching(), where).run()
    assert len(seen) == pieces
    assert max(seen) <= micro_batch


def test_values_picked_by_a_condition_are_counted_in_two_passes_once_it_shows():
    """The first piece keeps all of its values, as if there were no condition; a later one does not."""
    weight, x = nn.Parameter(torch.ones(())), torch.arange(1.0, 9.0)
    calls = []

    def loss(batch):
        calls.append(len(batch["x"]))
        values = weight * batch["x"]
        return Loss.mean("picked", values[batch["x"] < 6]) + Loss.mean("all", values**2)

    divide = Divider(World(), nullcontext)
    random_state.seed_all(0)
    for expected_calls in (4 + 8, 8):  # at first four pieces in vain; from then on two passes at once
        calls.clear()
        weight.grad = None
        taken = divide(loss, {"x": x}, [weight], pieces=4)
        assert len(calls) == expected_calls
        assert float(taken.values["picked"]) == pytest.approx(3.0)
        assert float(weight.grad) == pytest.approx(3.0 + 2 * float((x**2).mean()))


def test_lambdas_made_anew_are_one_loss_function():
    weight, divide = nn.Parameter(torch.ones(())), Divider(World(), nullcontext)
    for i in range(3):
        picked = lambda b, i=i: Loss.batch("a", lambda x: (weight * x).mean() + i, x=b["x"])  # noqa: E731
        weight.grad = None
        divide(picked, {"x": torch.full((4,), 3.0)}, [weight], pieces=2)
        assert float(weight.grad) == 3.0  # the parameter stands inside the function alone
    assert len(divide._two_passes) == 1


@pytest.mark.parametrize("rows", [2, 4, 16])
def test_kept_bytes_of_a_small_network_by_hand(rows):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(rows, 6)
    kept = kept_bytes(lambda: model(x), besides=[*model.parameters(), x])
    assert kept == 4 * rows * 5  # the ReLU's output, which the next layer keeps too


def test_kept_bytes_lets_go_of_what_it_saw():
    """An operation that keeps its own output (softmax) must not hold itself."""
    seen = []

    def run():
        out = torch.randn(4, 3, requires_grad=True).softmax(-1)
        seen.append(weakref.ref(out.untyped_storage()))
        return out.sum()

    assert kept_bytes(run) == 4 * 12
    assert seen[0]() is None
