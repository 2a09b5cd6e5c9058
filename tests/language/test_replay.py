"""The replay: what goes in comes out, in order, at the stated rate, whatever the cut; and it survives a checkpoint."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from small_models import END, PAD, Words, batch_of, llama

from limbeck.language.replay import Replay
from limbeck.language.rollouts import sample
from limbeck.randomness import fold


def replay(capacity=6, width=20):
    return Replay(capacity, width, pad=PAD, pieces=Words().pieces)


@cache
def written(count, first=0, seed=0):
    prompts = [([2, 3, 4], [5]), ([7, 8], [9]), ([4, 4, 4, 4, 5], [3])]
    batch = batch_of([prompts[i % 3] for i in range(count)], first)
    return sample(llama(), Words(), batch, max_new_tokens=6, seed=seed)


def rows(batch):
    """Every row with its columns, without padding, so that batches of other widths compare."""
    names = ("input_ids", "target", "answer", "old_log_probs")
    return [
        {
            "id": int(batch["id"][i]),
            "answer_bytes": int(batch["answer_bytes"][i]),
            **{name: batch[name][i, : int(batch["attention_mask"][i].sum())].tolist() for name in names},
        }
        for i in range(len(batch["id"]))
    ]


def test_what_is_drawn_is_what_was_pushed():
    store, batch = replay(), written(5, first=30)
    store.push(store.kept(batch))
    found = rows(store.draw(batch, fold(torch.arange(5), 3)))
    known = {row["id"]: row for row in rows(batch)}
    assert all(row == known[row["id"]] for row in found)
    assert len({row["id"] for row in found}) > 1


def test_first_in_first_out():
    store = replay(capacity=4)
    for first in range(0, 7):
        store.push(store.kept(written(1, first)))
        assert len(store) == min(first + 1, 4)
        assert store.full == (first >= 3)
    assert sorted(store.row.tolist()) == [3, 4, 5, 6]
    store.push(store.kept(written(6, 10)))
    assert sorted(store.row.tolist()) == [12, 13, 14, 15]


@given(st.integers(1, 9), st.integers(1, 8))
def test_the_cut_into_pieces_and_processes_does_not_show(capacity, split):
    batch, whole, cut = written(8), replay(capacity), replay(capacity)
    whole.push(whole.kept(batch))
    pieces = [{k: v[i::split] for k, v in batch.items()} for i in range(split)]  # as a sampler hands rows to processes
    records = [cut.kept(piece) for piece in pieces]
    cut.push({name: torch.cat([r[name] for r in records]) for name in records[0]})
    for name, value in whole.state_dict().items():
        assert torch.equal(cut.state_dict()[name], value), name


def test_draws_are_uniform():
    store = replay(capacity=6)
    store.push(store.kept(written(6)))
    found = store.draw({}, fold(torch.arange(3000), 5))["id"]
    assert chisquare(torch.bincount(found, minlength=6)).pvalue > 1e-3


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_rows_are_exchanged_at_the_rate(rate):
    store, batch = replay(), written(600, first=1000)
    assert store.mixed(batch, fold(torch.arange(600), 1), rate) is batch  # nothing stored yet
    store.push(store.kept(written(6)))
    found = store.mixed(batch, fold(torch.arange(600), 1), rate)
    old = found["id"] < 1000
    assert abs(float(old.float().mean()) - rate) < 3 * (rate * (1 - rate) / 600) ** 0.5 + 1e-9
    fresh = {row["id"]: row for row in rows(batch)}
    stored = {row["id"]: row for row in rows(store.draw({}, fold(torch.arange(99), 2)))}
    for row in rows(found):
        assert row == (stored if row["id"] < 1000 else fresh)[row["id"]]


def test_what_is_too_long_or_not_wanted_is_not_kept():
    store = replay(width=6)
    batch = batch_of([([2, 3], [4, END]), ([2, 3, 4, 5], [6, 7, END]), ([2], [3]), ([2, 3], [4])])
    batch["answer"][2] = False
    store.push(store.kept(batch, torch.tensor([True, True, True, False])))
    assert len(store) == 1
    assert store.row[0] == 0


def test_its_state_is_all_there_is_to_it():
    one, other = replay(), replay()
    one.push(one.kept(written(5)))
    other.load_state_dict(one.state_dict())
    seeds = fold(torch.arange(20), 9)
    assert rows(one.draw({}, seeds)) == rows(other.draw({}, seeds))
    for store in (one, other):
        store.push(store.kept(written(4, 50)))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_nothing_can_be_drawn_of_nothing():
    with pytest.raises(ValueError, match="nothing was pushed yet"):
        replay().draw({}, torch.arange(3))
