"""Filling a folder: cut off at any byte, it goes on to the same bytes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_form import header

from limbeck.caching import form
from limbeck.caching.writer import Folder, Writer, to_bytes
from limbeck.errors import RecipeError


def tensors(shard):
    return {"id": torch.arange(shard.first, shard.first + shard.rows), "signals/logits/": torch.ones(shard.rows, 3)}


def fill(path, most=None, rank=0):
    """Fill a folder, or write only some shards of it."""
    folder = Folder(path, header())
    missing = folder.begin()
    with Writer(path, rank) as writer:
        for number in missing[:most]:
            writer.add(folder.shards[number], tensors(folder.shards[number]))
    if most is None and missing:
        folder.end()
    return missing


def content(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_filled_folder_says_so_and_holds_nothing_else(tmp_path):
    assert fill(tmp_path) == [0, 1, 2]
    assert sorted(content(tmp_path)) == ["cache.json", *(f"shard-0000{i}.safetensors" for i in range(3))]
    stored = form.read(tmp_path)
    assert stored["complete"]
    assert [entry["rows"] for entry in stored["shards"]] == [4, 4, 2]
    assert form.damage(tmp_path, stored, checksums=True) == []
    assert fill(tmp_path) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    fill(path)
    return content(path)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A folder whose writer was stopped after two shards."""
    path = tmp_path_factory.mktemp("stopped")
    fill(path, most=2)
    return content(path)


@settings(max_examples=25)
@given(data=st.data())
def test_a_kill_at_any_byte_of_any_file_costs_what_it_cut_and_nothing_more(whole, stopped, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut")
    for name, raw in stopped.items():
        (path / name).write_bytes(raw)
    name = data.draw(st.sampled_from(sorted(n for n in stopped if n != form.FILE)))
    raw = stopped[name]
    cut = data.draw(st.integers(0, len(raw) - 1))
    (path / name).write_bytes(raw[:cut])
    (path / ".shard-00002.safetensors.writing").write_bytes(b"half a shard")
    missing = fill(path)
    assert 2 in missing
    if name.startswith("shard"):
        assert missing == [int(name[6:11]), 2]
    else:
        kept = [json.loads(line) for line in raw[:cut].decode().splitlines() if line.endswith("}")]
        assert missing == [n for n in range(3) if n not in range(len(kept))]
    assert content(path) == whole
    shutil.rmtree(path)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_finished_folder_with_a_changed_bit_is_mended(whole, tmp_path, at):
    fill(tmp_path)
    path = tmp_path / f"shard-0000{at}.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    assert fill(tmp_path) == [at]
    assert content(tmp_path) == whole


def test_several_processes_write_lists_of_their_own(whole, tmp_path):
    folder = Folder(tmp_path, header())
    folder.begin()
    for rank, number in ((1, 2), (0, 0), (1, 1)):
        with Writer(tmp_path, rank) as writer:
            writer.add_bytes(folder.shards[number], to_bytes(tensors(folder.shards[number])))
    assert {"asked-000.jsonl", "asked-001.jsonl"} < set(content(tmp_path))
    folder.end()
    assert content(tmp_path) == whole


def test_an_end_before_the_end_is_refused(tmp_path):
    fill(tmp_path, most=1)
    with pytest.raises(RuntimeError, match=r"2 shards were not written, shard-00001\.safetensors first"):
        Folder(tmp_path, header()).end()


def test_a_foreign_folder_and_another_question_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RecipeError, match=r"not empty and no cache \(it holds notes.txt\)"):
        Folder(tmp_path, header()).begin()
    fill(tmp_path / "cache", most=1)
    with pytest.raises(RecipeError, match=r"the answers to another question: batch: 8 here, 4 there"):
        Folder(tmp_path / "cache", header(batch=8)).begin()


def test_what_goes_wrong_in_the_writing_thread_is_raised(tmp_path):
    folder = Folder(tmp_path, header())
    folder.begin()
    (tmp_path / folder.shards[0].file).mkdir()
    writer = Writer(tmp_path)
    writer.add(folder.shards[0], tensors(folder.shards[0]))
    with pytest.raises(IsADirectoryError):
        writer.__exit__(None, None, None)
