"""Checkpoints: whole or not there, whatever breaks; and runs that go on from them."""

import errno
import json
import os
import random
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.actors import Student
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine import checkpoint, random_state
from limbeck.engine.checkpoint import CheckpointError
from limbeck.engine.course import Course
from limbeck.engine.log import Log
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation, Stopped
from limbeck.errors import RecipeError
from limbeck.methods.supervised import Supervised
from limbeck.tasks import Task


def state(n=0):
    return {"student": {"weight": torch.full((3, 2), float(n)), "count": torch.tensor(n)}, "step": n, "none": None}


def test_what_is_written_is_read(tmp_path):
    whole = {
        "nested": {"list": [1, 2.5, "three", None, True], "tensors": [torch.ones(2), {"deep": torch.zeros(1)}]},
        "by number": {0: {"exp_avg": torch.ones(2, dtype=torch.bfloat16)}, 1: {}},
        "flags": torch.tensor([True, False]),
        "bytes": torch.get_rng_state(),
        "view": torch.arange(6).reshape(2, 3).T,
        "nan": float("nan"),
        "empty": {},
    }
    found = checkpoint.load(checkpoint.save(tmp_path, 7, whole))
    assert found["nested"]["list"] == [1, 2.5, "three", None, True]
    assert torch.equal(found["nested"]["tensors"][1]["deep"], torch.zeros(1))
    assert torch.equal(found["by number"][0]["exp_avg"], torch.ones(2, dtype=torch.bfloat16))
    assert found["by number"][1] == {} == found["empty"]
    for name in ("flags", "bytes", "view"):
        assert torch.equal(found[name], whole[name])
        assert found[name].dtype == whole[name].dtype
    assert np.isnan(found["nan"])


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(plain)
def test_any_plain_data(tmp_path_factory, value):
    assert checkpoint.load(checkpoint.save(tmp_path_factory.mktemp("c"), 0, {"value": value}))["value"] == value


def test_two_are_kept_and_the_newest_is_read(tmp_path):
    for n in (1, 2, 10, 9):
        checkpoint.save(tmp_path, n, state(n))
    assert [path.name for path in checkpoint.list_all(tmp_path)] == ["step-000009", "step-000010"]
    found, said = checkpoint.load_newest(tmp_path)
    assert found["step"] == 10
    assert said == []
    assert checkpoint.load_newest(tmp_path / "nothing here") == (None, [])


def cut_short(path):
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size // 2)


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE = {
    "tensors cut short": lambda folder: cut_short(folder / "tensors.safetensors"),
    "tensors gone": lambda folder: (folder / "tensors.safetensors").unlink(),
    "state cut short": lambda folder: cut_short(folder / "state.json"),
    "state changed": lambda folder: flipped(folder / "state.json"),
    "state gone": lambda folder: (folder / "state.json").unlink(),
    "empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_passed_over_with_a_sentence(kind, tmp_path):
    for n in (1, 2):
        checkpoint.save(tmp_path, n, state(n))
    DAMAGE[kind](tmp_path / "step-000002")
    found, said = checkpoint.load_newest(tmp_path)
    assert found["step"] == 1
    assert len(said) == 1
    assert "step-000002" in said[0]
    assert said[0].endswith("It is left aside.")
    DAMAGE[kind](tmp_path / "step-000001")
    with pytest.raises(
        RecipeError, match=r"step-000002.*step-000001.*No whole checkpoint is left .* remove that folder"
    ):
        checkpoint.load_newest(tmp_path)


@pytest.mark.parametrize("where", ["save_file", "write_text", "fsync", "rename"])
@pytest.mark.parametrize(("number", "sentence"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "[Ii]nput/output")])
def test_a_full_disk_leaves_the_earlier_ones_whole(where, number, sentence, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoints"
    checkpoint.save(folder, 1, state(1))
    checkpoint.save(folder, 2, state(2))

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        if where == "save_file":
            patched.setattr(checkpoint, "save_file", fail)
        elif where == "fsync":
            patched.setattr(os, "fsync", fail)
        else:
            patched.setattr(Path, where, fail)
        with pytest.raises(CheckpointError, match=sentence) as error:
            checkpoint.save(folder, 3, state(3))
    assert "Earlier checkpoints are untouched" in str(error.value)
    assert "limbeck resume" in str(error.value)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000001", "step-000002"]
    assert checkpoint.load_newest(folder)[0]["step"] == 2
    checkpoint.save(folder, 3, state(3))
    assert checkpoint.load_newest(folder)[0]["step"] == 3


def test_a_write_that_the_kill_cut_off_is_no_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1))

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, 2, state(2))
    assert checkpoint.load_newest(tmp_path)[0]["step"] == 1
    checkpoint.save(tmp_path, 3, state(3))  # and sweeps up what was left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000003"]


def test_saving_a_step_again_replaces_it_and_a_kill_in_between_keeps_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 2, state(0))
    checkpoint.save(tmp_path, 2, state(2))
    assert checkpoint.load_newest(tmp_path)[0]["student"]["weight"][0, 0] == 2
    real, calls = shutil.rmtree, []

    def dying(path, *args, **kwargs):
        calls.append(path)
        real(path, *args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dying)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 2, state(5))
    assert calls
    assert checkpoint.load_newest(tmp_path)[0] is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(CheckpointError, match="Give write permission"):
            checkpoint.save(tmp_path / "checkpoints", 1, state(1))
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(("number", "sentence"), [(errno.EROFS, "read-only"), (errno.EACCES, "write permission")])
def test_a_read_only_folder(number, sentence, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.save(tmp_path / "checkpoints", 1, state(1))


def test_all_generators_are_given_back():
    random_state.seed_all(5)
    random.gauss(0, 1)
    np.random.standard_normal()
    taken = random_state.capture_all(torch.device("cpu"))
    plain = json.loads(json.dumps({k: v for k, v in taken.items() if k == "python"}))

    def draw():
        return [random.random(), random.gauss(0, 1), np.random.standard_normal(), float(torch.rand(()))]

    first = draw()
    random_state.restore_all(taken | plain, torch.device("cpu"))
    assert draw() == first


def course(folder, **train):
    """A small run that writes a log; its store is set by the tests."""
    random_state.seed_all(0)
    g = torch.Generator().manual_seed(0)

    def rows(count, first):
        return TensorSplit(
            {"x": torch.randn(count, 4, generator=g), "label": torch.randint(0, 3, (count,), generator=g)}, first
        )

    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    train = {"epochs": 6, "batch_size": 8, "save_every": 0.0, "log_every": 1, "lr": 0.05} | train
    data = Data({"train": rows(20, 0), "validation": rows(9, 50)})
    log = Log(folder / "log.jsonl")
    where = Situation(Student(net, view="x"), None, Task("classification"), data, TrainSettings(**train), 1, log=log)
    return Course(Supervised(), where)


def lines(folder):
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("samples_per_s", "wait_s")} for line in found]


class KilledError(Exception):
    """As if the process had gone."""


def killed_after(made, keep, saves, die):
    count = 0

    def store(position, whole):
        nonlocal count
        count += 1
        if count == saves:
            checkpoint.save(keep, position, whole)
        if count == die:
            raise KilledError

    made.store = store
    with pytest.raises(KilledError):
        made.run()
    made.situation.log.close()


@pytest.mark.parametrize(("saves", "die"), [(2, 2), (3, 5), (7, 9), (12, 12)])
def test_the_log_of_a_continued_run_is_that_of_one_never_cut_off(saves, die, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    course(tmp_path / "whole").run()
    killed_after(course(tmp_path / "cut"), tmp_path / "keep", saves, die)
    course(tmp_path / "cut").run(checkpoint.load_newest(tmp_path / "keep")[0])
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


@pytest.mark.parametrize("train", [{"patience": 1, "lr": 2.0}, {"ema": 0.7}, {"optimizer": "sgd"}, {"select": "last"}])
def test_patience_averages_and_optimisers_are_continued(train, tmp_path):
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = course(tmp_path / "whole", **train)
    results = whole.run()
    killed_after(course(tmp_path / "cut", **train), tmp_path / "keep", 5, 5)
    again = course(tmp_path / "cut", **train)
    found = again.run(checkpoint.load_newest(tmp_path / "keep")[0])
    assert [vars(r) | {"seconds": 0} for r in found] == [vars(r) | {"seconds": 0} for r in results]
    for a, b in zip(again.situation.student.model.parameters(), whole.situation.student.model.parameters()):
        assert torch.equal(a, b)


def test_a_stop_that_comes_when_patience_is_at_its_end_ends_the_run_after_all(tmp_path):
    (tmp_path / "whole").mkdir()
    whole = course(tmp_path / "whole", patience=1, lr=2.0)
    (result,) = whole.run()
    assert result.steps < 18
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return Stopped("interrupted", "asked") if asked == result.steps else None

    (tmp_path / "cut").mkdir()
    cut = course(tmp_path / "cut", patience=1, lr=2.0)
    cut.store, cut.situation.stop = lambda position, state: checkpoint.save(tmp_path / "keep", position, state), stop
    with pytest.raises(Stopped):
        cut.run()
    (found,) = course(tmp_path / "cut", patience=1, lr=2.0).run(checkpoint.load_newest(tmp_path / "keep")[0])
    assert found.steps == result.steps


def test_a_finished_run_gives_its_student_back(tmp_path):
    first = course(tmp_path)
    first.store = lambda position, state: checkpoint.save(tmp_path / "keep", position, state)
    first.run()
    again = course(tmp_path)
    with torch.no_grad():
        for p in again.situation.student.model.parameters():
            p.zero_()
    again.run(checkpoint.load_newest(tmp_path / "keep")[0])
    for a, b in zip(again.situation.student.model.parameters(), first.situation.student.model.parameters()):
        assert torch.equal(a, b)


def test_a_state_of_other_code_is_refused_with_the_names(tmp_path):
    first = course(tmp_path)
    first.store = lambda position, state: checkpoint.save(tmp_path / "keep", position, state)
    first.run()
    state, _ = checkpoint.load_newest(tmp_path / "keep")
    state["student"]["3.weight"] = state["student"].pop("2.weight")
    with pytest.raises(RuntimeError, match=r"does not fit Sequential: 2\.weight, 3\.weight"):
        course(tmp_path).run(state)


def test_more_processes_than_it_was_saved_with_are_refused(tmp_path):
    from limbeck.engine.processes import World

    first = course(tmp_path)
    first.store = lambda position, state: checkpoint.save(tmp_path / "keep", position, state)
    first.run()
    more = course(tmp_path)
    more.situation.world = World(rank=1, size=1)
    with pytest.raises(RecipeError, match=r"saved by 1 processes .* --gpus 1"):
        more.run(checkpoint.load_newest(tmp_path / "keep")[0])
