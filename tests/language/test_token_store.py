"""Rows of tokens in memory and on disk."""

from __future__ import annotations

import gc
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.language.split import Side, TokenSplit
from limbeck.language.store import Store, Writer, cache_folder

KINDS = {"ids": "int32", "counted": "uint8"}


def written(rows: list[list[int]], home: Path, budget: int) -> Store:
    writer = Writer(KINDS, home, budget)
    for row in rows:
        writer.add({"ids": row, "counted": [n % 2 for n in row]})
    assert len(writer) == len(rows)
    return writer.finish({"cut": 3})


@given(
    rows=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=12), budget=st.sampled_from([0, 200, 2**20])
)
def test_rows_come_back(rows: list[list[int]], budget: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("store") / "home"
    store = written(rows, home, budget)
    assert (
        home.exists()
        == (store.folder is not None)
        == (budget < 2**20 and sum(4 * len(r) + len(r) + 128 for r in rows) > budget)
    )
    for one in (store, pickle.loads(pickle.dumps(store))):
        assert len(one) == len(rows)
        assert [one["ids", n].tolist() for n in range(len(rows))] == rows
        assert [one["counted", n].tolist() for n in range(len(rows))] == [[n % 2 for n in row] for row in rows]
        assert one.lengths("ids").tolist() == list(map(len, rows))
        assert one.facts == {"cut": 3}
        assert ("ids" in one, "other" in one) == (True, False)
        assert one["ids", 0].dtype == np.int32 if rows else True


def test_a_store_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    home = tmp_path / "cache" / "home"
    writer = Writer(KINDS, home, 0)
    assert writer.found() is None
    writer.add({"ids": [1], "counted": [1]})
    assert not home.exists()
    writer.give_up()
    assert list(home.parent.iterdir()) == []
    store = written([[1, 2]], home, 0)
    assert [one.name for one in home.parent.iterdir()] == ["home"]
    found = writer.found()
    assert found is not None
    assert found["ids", 0].tolist() == store["ids", 0].tolist()


def test_two_processes_write_the_same(tmp_path: Path) -> None:
    """Who comes second reads what the first has finished."""
    first, second = (Writer(KINDS, tmp_path / "home", 0) for _ in range(2))
    for writer in (first, second):
        writer.add({"ids": [4, 5], "counted": [0, 1]})
    stores = [writer.finish({}) for writer in (first, second)]
    assert [store["ids", 0].tolist() for store in stores] == [[4, 5], [4, 5]]
    assert [one.name for one in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("harm", ["facts", "short", "gone"])
def test_a_damaged_store(tmp_path: Path, harm: str) -> None:
    home = tmp_path / "home"
    written([[1, 2, 3]], home, 0)
    if harm == "facts":
        (home / "store.json").write_text("{")
    elif harm == "short":
        (home / "ids.bin").write_bytes(b"\0" * 8)
    else:
        (home / "ids.bin").unlink()
    with pytest.raises(RecipeError, match=r"Delete it; it is made again"):
        Store.open(home)


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.delenv("LIMBECK_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "limbeck"


def test_memory_stays_flat(tmp_path: Path) -> None:
    """48 MB of tokens are written within 4 MB, and thousands of batches are read from them within another."""
    kinds = {**KINDS, "bytes": "int64"}
    rows, length = 300, 32_000
    ids = np.arange(length, dtype=np.int32)
    gc.collect()
    tracemalloc.start()
    try:
        writer = Writer(kinds, tmp_path / "home", 2**20)
        for _ in range(rows):
            writer.add({"ids": ids.copy(), "counted": np.ones(length, np.uint8), "bytes": [1]})
        store = writer.finish({})
        assert len(store.arrays["ids"]) == rows * length
        assert tracemalloc.get_traced_memory()[1] < 2**22
        alone = (np.arange(rows), np.arange(rows + 1))
        split = TokenSplit(store, alone, [str(n) for n in range(rows)], np.arange(rows), [Side("", 0)], False)
        used = []
        for _ in range(3):
            for n in range(400):
                split.__getitems__([n % rows])
            gc.collect()
            used.append(tracemalloc.get_traced_memory()[0])
        assert max(used) - used[0] < 2**14
    finally:
        tracemalloc.stop()


def test_rows_of_several_documents() -> None:
    """By hand: two documents in the first row, one in the second; the targets of each are its own."""
    store = Store(
        {
            "ids": np.array([5, 6, 7, 8, 9, 4], np.int32),
            "counted": np.array([0, 1, 1, 0, 1, 0], np.uint8),
            "bytes": np.array([3, 2, 0]),
        },
        {"ids": np.array([0, 3, 5, 6]), "counted": np.array([0, 3, 5, 6]), "bytes": np.arange(4)},
    )
    split = TokenSplit(
        store, (np.array([0, 1, 2]), np.array([0, 2, 3])), ["a", "b"], np.array([7, 8]), [Side("", 1)], True
    )
    batch = {name: values.tolist() for name, values in split.__getitems__([1, 0]).items()}
    assert batch == {
        "input_ids": [[4, 1, 1, 1, 1], [5, 6, 7, 8, 9]],
        "attention_mask": [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
        "target": [[-100] * 5, [6, 7, -100, 9, -100]],
        "answer": [[False] * 5, [True, True, False, True, False]],
        "answer_bytes": [0, 5],
        "position_ids": [[0, 0, 0, 0, 0], [0, 1, 2, 0, 1]],
        "segment": [[0, -1, -1, -1, -1], [0, 0, 0, 1, 1]],
        "id": [8, 7],
    }
    assert split[-1]["input_ids"].tolist() == [4]
