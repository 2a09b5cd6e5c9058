"""The order is a function of seed and epoch: not of workers, of processes, or of where one begins."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.data import load_data
from limbeck.data.loader import Loader, read
from limbeck.data.tensors import TensorSplit
from limbeck.errors import RecipeError
from limbeck.randomness import seeds_for


def split(rows: int, first: int = 100) -> TensorSplit:
    return TensorSplit({"x": torch.arange(float(rows))}, first)


def same(one: Iterator[dict[str, Any]], other: Iterator[dict[str, Any]]) -> bool:
    ones, others = list(one), list(other)
    assert len(ones) == len(others)
    for left, right in zip(ones, others, strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
    return bool(ones)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_row_once_in_steps_of_the_batch_size(
    rows: int, size: int, seed: int, epoch: int, shuffle: bool
) -> None:
    loader = Loader(split(rows), size, seed=seed, shuffle=shuffle)
    batches = list(loader.epoch(epoch))
    assert len(batches) == loader.steps_per_epoch == -(-rows // size)
    assert [len(batch["id"]) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    ids = torch.cat([batch["id"] for batch in batches])
    assert sorted(ids.tolist()) == list(range(100, 100 + rows))
    assert torch.equal(torch.cat([batch["x"] for batch in batches]) + 100, ids.float())
    if not shuffle:
        assert ids.tolist() == sorted(ids.tolist())


def test_the_order_depends_on_seed_and_epoch_and_not_on_the_global_generator() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        loader = Loader(split(50), 50, seed=seed, shuffle=True)
        return tuple(next(loader.epoch(epoch))["id"].tolist())

    before = torch.random.get_rng_state()
    orders = {(seed, epoch): order(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(set(orders.values())) == 16
    torch.manual_seed(123)
    assert order(2, 3) == orders[2, 3]


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 31), st.integers(1, 3))
def test_beginning_in_the_middle_gives_the_same_batches(rows: int, size: int, start: int, world: int) -> None:
    loader = Loader(split(rows), size, seed=5, shuffle=True, rank=world - 1, world=world)
    whole = list(loader.epoch(2))
    assert same(loader.epoch(2, start), iter(whole[start:])) == (start < len(whole))


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_the_processes_together_read_what_one_process_reads(rows: int, size: int, world: int, drop: bool) -> None:
    if rows < size and drop:
        return
    alone = list(Loader(split(rows), size, seed=1, shuffle=True, drop_last=drop).epoch(3))
    shares = [
        list(Loader(split(rows), size, seed=1, shuffle=True, drop_last=drop, rank=rank, world=world).epoch(3))
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {len(alone)}
    for step, whole in enumerate(alone):
        assert "ghost" not in whole
        for rank, share in enumerate(shares):
            mine = whole["id"][rank::world]
            assert share[step].get("ghost", False) is (len(mine) == 0)
            expected = mine if len(mine) else whole["id"][:1]
            assert torch.equal(share[step]["id"], expected)
            assert torch.equal(share[step]["view_seed"], seeds_for(expected, 1, 3))


def test_view_seeds_are_per_sample_and_epoch_and_only_in_training() -> None:
    loader = Loader(split(6), 4, seed=9, shuffle=True)
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert torch.equal(batch["view_seed"], seeds_for(batch["id"], 9, epoch))
    assert all("view_seed" not in batch for batch in Loader(split(6), 4, seed=9, shuffle=False).epoch(0))


def test_view_seeds_may_be_given() -> None:
    loader = Loader(
        split(6), 4, seed=9, shuffle=True, view_seeds=lambda ids, seed, epoch: ids * 100 + seed * 10 + epoch
    )
    for epoch in (0, 1):
        for batch in loader.epoch(epoch):
            assert torch.equal(batch["view_seed"], batch["id"] * 100 + 90 + epoch)


def test_lists_of_rows_are_read_in_order_also_ahead(pictures: Path) -> None:
    data = load_data(pictures, budget=0, columns={"label": "label", "image": "image"})
    plan = [[3, 1], [0], [2, 2, 5]]
    plain = list(read(data["train"], plan))
    assert [batch["id"].tolist() for batch in plain] == [data["train"].__getitems__(r)["id"].tolist() for r in plan]
    assert same(read(data["train"], plan, workers=1), iter(plain))
    (pictures.parent / "img" / "3.png").unlink()
    with pytest.raises(RecipeError, match=r"^Row 3: image 3\.png is not there"):
        list(read(data["train"], [list(range(len(data["train"])))], workers=1))


def test_drop_last() -> None:
    loader = Loader(split(10), 4, seed=0, shuffle=True, drop_last=True)
    assert loader.steps_per_epoch == 2
    assert [len(batch["id"]) for batch in loader.epoch(0)] == [4, 4]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"rank": 2, "world": 2}, "rank=2, world=2"),
        ({"workers": -1}, "workers=-1"),
        ({"batch_size": 11, "drop_last": True}, "10 rows make no step of batch_size 11"),
    ],
)
def test_what_makes_no_steps(options: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        Loader(split(10), **{"batch_size": 4, "seed": 0, "shuffle": True, **options})
    with pytest.raises(RecipeError, match="0 rows make no step"):
        Loader(split(0), 4, seed=0, shuffle=True)


def test_workers_give_the_same_batches_over_epochs_and_after_leaving_one_early(pictures: Path) -> None:
    data = load_data(pictures, budget=0, columns={"label": "label", "image": "image"})
    options: dict[str, Any] = {"seed": 3, "shuffle": True, "rank": 1, "world": 2}
    plain = Loader(data["train"], 5, **options)
    ahead = Loader(data["train"], 5, workers=2, **options)
    for epoch in range(2):
        assert same(ahead.epoch(epoch), plain.epoch(epoch))
    left = ahead.epoch(2)
    next(left)
    processes = [worker.pid for worker in ahead._reader._iterator._workers]
    assert same(ahead.epoch(4, 1), plain.epoch(4, 1))
    assert [worker.pid for worker in ahead._reader._iterator._workers] == processes


def test_an_error_in_a_worker_is_the_same_sentence(pictures: Path) -> None:
    data = load_data(pictures, budget=0)
    (pictures.parent / "img" / "3.png").unlink()
    for workers in (0, 1):
        loader = Loader(data["train"], 18, seed=0, shuffle=False, workers=workers)
        with pytest.raises(RecipeError, match=r"^Row 3: image 3\.png is not there"):
            next(loader.epoch(0))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_memory_is_flat_over_ten_thousand_steps() -> None:
    rows = TensorSplit({"x": torch.zeros(4000, 64)})
    loader = Loader(rows, 8, seed=0, shuffle=True)

    def run(epochs: range) -> int:
        for epoch in epochs:
            for batch in loader.epoch(epoch):
                assert len(batch["id"]) == 8
        return resident()

    warm = run(range(2))
    assert run(range(2, 22)) - warm < 4 * 2**20  # 10,000 steps; their batches alone are 20 MiB
