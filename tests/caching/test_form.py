"""The folder: how rows are cut into shards, what is another question, and what counts as damage."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.caching import form
from limbeck.errors import RecipeError


def header(**changes):
    base = {
        "limbeck": "1",
        "format": form.FORMAT,
        "complete": False,
        "teacher": {"fingerprint": {"teacher": "ab"}, "view": "x", "from": "here", "weights": None},
        "data": {"source": "here", "fingerprint": "cd"},
        "signals": {"logits": {"shape": [3], "given": "float32", "dtype": "fp16"}},
        "passes": [{"split": "train", "view": None, "rows": 10}],
        "batch": 4,
        "rows_per_shard": 4,
        "shards": [],
    }
    return base | changes


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(1, 9))
def test_shards_hold_every_row_of_every_pass_once(rows, size):
    passes = [{"split": f"s{i}", "view": i, "rows": n} for i, n in enumerate(rows)]
    shards = list(form.shards(header(passes=passes, rows_per_shard=size)))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    for part in passes:
        own = [shard for shard in shards if shard.split == part["split"]]
        assert [row for s in own for row in range(s.first, s.first + s.rows)] == list(range(part["rows"]))
        assert {shard.view for shard in own} == {part["view"]}
        assert all(shard.first % size == 0 and shard.rows <= size for shard in own)


@given(st.floats(0.5, 1e9), st.integers(1, 5000))
def test_a_shard_is_whole_batches_and_not_too_large(row, batch):
    rows = form.rows_per_shard(row, batch)
    assert rows % batch == 0
    assert rows == batch or (rows <= form.SHARD_ROWS and rows * row <= form.SHARD_BYTES)


def test_other_questions_differ_and_other_places_do_not():
    moved = header(limbeck="2", complete=True, shards=[{"file": "a"}])
    moved["teacher"] = moved["teacher"] | {"from": "there", "weights": "00"}
    moved["data"] = moved["data"] | {"source": "there"}
    assert form.differences(header(), moved) == []
    other = header(batch=8, teacher={"fingerprint": {"teacher": "zz"}, "view": "x"})
    assert form.differences(other, header()) == [
        "teacher.fingerprint.teacher: zz here, ab there",
        "batch: 8 here, 4 there",
    ]
    more = header(signals={})
    assert form.differences(more, header())[0].startswith("signals.logits: null here, ")


def test_damage_is_said_of_each_shard(tmp_path):
    content = b"0123456789"
    entries = []
    for number in range(4):
        path = tmp_path / f"shard-{number}"
        form.durable(path, content)
        entries.append({"file": path.name, "bytes": 10, "sha256": form.sha256(path)})
    told = {"shards": entries}
    assert form.damage(tmp_path, told, checksums=True) == []
    (tmp_path / "shard-0").unlink()
    (tmp_path / "shard-1").write_bytes(content[:7])
    (tmp_path / "shard-2").write_bytes(b"0123456780")
    (tmp_path / "shard-3").write_bytes(content + b"!")
    assert form.damage(tmp_path, told, checksums=True) == [
        "shard-0 is missing.",
        "shard-1 is cut short: 7 bytes, written were 10.",
        "shard-2 holds other bytes than were written (its SHA-256 differs).",
        "shard-3 is too long: 11 bytes, written were 10.",
    ]
    assert len(form.damage(tmp_path, told, checksums=False)) == 3
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".writing")] == []


def test_what_is_no_cache_is_said(tmp_path):
    assert not form.is_cache(tmp_path)
    with pytest.raises(RecipeError, match="is no cache: it holds no cache.json"):
        form.read(tmp_path)
    (tmp_path / form.FILE).write_text('{"format": 1')
    assert form.is_cache(str(tmp_path))
    with pytest.raises(RecipeError, match="damaged"):
        form.read(tmp_path)
    (tmp_path / form.FILE).write_text(json.dumps({"format": 2, "limbeck": "9.9"}))
    with pytest.raises(RecipeError, match=r"of format 2, written by limbeck 9\.9"):
        form.read(tmp_path)
