"""Answers on disk: found by content, whole or not at all, shared by processes, never lost to a torn line."""

import json
import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.teachers.journal import Journal, key_of


def answer(n, **more):
    return {"key": key_of(n=n), "text": f"answer {n} \N{SNOWMAN}", **more}


def test_an_answer_comes_back_in_this_process_and_the_next(tmp_path):
    journal = Journal(tmp_path / "deep" / "answers.jsonl")
    assert journal.get(key_of(n=1)) is None
    journal.add(answer(1))
    for again in (journal, Journal(journal.path)):
        assert again.get(key_of(n=1)) == answer(1)
        assert key_of(n=1) in again
        assert len(again) == 1
        assert again.get(key_of(n=2)) is None


def test_a_key_is_of_content_alone():
    assert key_of(a=1, b=[1, 2]) == key_of(b=[1, 2], a=1)
    assert len({key_of(a=1), key_of(a=2), key_of(b=1), key_of(a="1")}) == 4
    assert len(key_of(a=1)) == 64


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(1, 60), data=st.data())
def test_a_torn_last_line_costs_that_answer_alone(tmp_path_factory, cut, data):
    path = tmp_path_factory.mktemp("torn") / "answers.jsonl"
    journal = Journal(path)
    for n in range(3):
        journal.add(answer(n))
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.truncate(size - min(cut, size - 1))
    before = [n for n in range(3) if key_of(n=n) in Journal(path)]
    assert before == list(range(len(before)))
    torn = Journal(path)
    torn.add(answer(7))
    again = Journal(path)
    assert again.get(key_of(n=7)) == answer(7)
    for n in before:
        assert again.get(key_of(n=n)) == answer(n)
    assert all(line.endswith(b"\n") for line in path.read_bytes().splitlines(keepends=True))


def test_a_line_that_only_lacks_its_end_is_not_lost(tmp_path):
    """Cut exactly between the answer and its newline: the answer is whole."""
    path = tmp_path / "answers.jsonl"
    Journal(path).add(answer(1))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    journal = Journal(path)
    journal.add(answer(2))
    assert journal.get(key_of(n=1)) == answer(1)
    assert journal.torn == 0


def test_what_is_no_answer_is_counted_and_passed_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key": "a", "te\n\n[1, 2]\n3\n\xff\xfe\n' + json.dumps(answer(1)).encode() + b"\n")
    journal = Journal(path)
    assert journal.torn == 4
    assert journal.get(key_of(n=1)) == answer(1)


def test_what_others_write_is_seen_and_what_is_under_way_is_waited_for(tmp_path):
    path = tmp_path / "answers.jsonl"
    mine, theirs = Journal(path), Journal(path)
    theirs.add(answer(1))
    assert mine.get(key_of(n=1)) == answer(1)
    line = json.dumps(answer(2)).encode() + b"\n"
    with path.open("ab") as file:
        file.write(line[:9])
        file.flush()
        assert mine.get(key_of(n=2)) is None
        file.write(line[9:])
    assert mine.get(key_of(n=2)) == answer(2)
    assert mine.torn == 0


def _write(path, first):
    journal = Journal(path)
    for n in range(first, first + 20):
        journal.add(answer(n, long="x" * 20_000, usd=0.25, run="r"))


def test_several_processes_write_to_one_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=_write, args=(path, first)) for first in (0, 20)]
    for process in running:
        process.start()
    for process in running:
        process.join(20)
    journal = Journal(path)
    assert len(journal) == 40
    assert journal.torn == 0
    assert journal.usd == {"r": 10.0}


def test_what_each_run_has_paid_is_known(tmp_path):
    journal = Journal(tmp_path / "answers.jsonl")
    journal.add(answer(1, usd=0.5, run="a"))
    journal.add(answer(2, usd=0.25, run="b"))
    journal.add(answer(3, usd=0.125, run="a"))
    journal.add(answer(4))
    assert Journal(journal.path).usd == {"a": 0.625, "b": 0.25, "None": 0.0}


def test_the_answers_of_another_file_are_taken_over_once(tmp_path):
    one, other = Journal(tmp_path / "one.jsonl"), Journal(tmp_path / "other.jsonl")
    one.add(answer(1))
    for n in (1, 2, 3):
        other.add(answer(n))
    assert one.absorb(other.path) == 2
    assert one.absorb(other.path) == 0
    assert [one.get(key_of(n=n)) for n in (1, 2, 3)] == [answer(n) for n in (1, 2, 3)]


def test_an_answer_is_on_disk_before_it_is_given_back(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    journal = Journal(tmp_path / "answers.jsonl")
    journal.add(answer(1))
    assert synced == [journal.path.stat().st_size]


def test_a_full_disk_is_an_error_and_no_answer(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "answers.jsonl")

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        journal.add(answer(1))
    assert key_of(n=1) not in journal
