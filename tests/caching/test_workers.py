"""What a worker gives back is what the file holds; a worker that finds other weights or data says so."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_filling import Net, data

import limbeck
from limbeck import RecipeError, Teacher
from limbeck.caching import form, workers
from limbeck.caching.filling import prepare
from limbeck.engine.processes import World
from limbeck.recipe import Recipe
from limbeck.teachers.mixture import Mixture


def recipe(seed: int = 0) -> Recipe:
    torch.manual_seed(seed)
    members = {name: Teacher(Net(), view="x") for name in ("one", "two")}
    keys = {"signals": ["logits", "two.body"], "dtype": "bf16"}
    return Recipe.of({"data": data(), "teacher": Mixture(members), "cache": keys, "train": {"batch_size": 4}})


def test_a_worker_gives_the_bytes_of_the_files(tmp_path, monkeypatch):
    monkeypatch.setattr(form, "SHARD_ROWS", 8)
    limbeck.cache(recipe(), out=tmp_path / "c")
    _, _, header, _ = prepare(recipe(), World(), tmp_path)
    worker = workers._Worker(pickle.loads(pickle.dumps(recipe())), header)
    given = worker({"shard": np.array([3, 0])})
    assert given["shard"] == [3, 0]
    for number, content in zip(given["shard"], given["content"]):
        assert content == (tmp_path / "c" / f"shard-0000{number}.safetensors").read_bytes()


def test_a_worker_with_other_weights_or_data_refuses(tmp_path):
    _, _, header, _ = prepare(recipe(), World(), tmp_path)
    with pytest.raises(RecipeError, match="a worker found another teacher than this process"):
        workers._Worker(recipe(1), header)
    other = header | {"data": {"source": "toy", "fingerprint": "00"}}
    with pytest.raises(RecipeError, match="a worker found another data than this process"):
        workers._Worker(recipe(), other)


def test_the_sentence_of_a_worker_is_found_wherever_ray_has_put_it():
    inner = RecipeError("row 3 is torn.")
    outer = RuntimeError("UserCodeException")
    outer.__cause__ = inner
    assert str(workers._sentence(outer)) == "row 3 is torn."
    wrapped = RuntimeError("RayTaskError")
    wrapped.cause = outer
    assert isinstance(workers._sentence(wrapped), RecipeError)
    other = ValueError("of another kind")
    assert workers._sentence(other) is other


def test_an_address_that_nobody_answers_is_a_sentence():
    def refuse(**options):
        assert options["address"] == "nowhere:1"
        raise ConnectionError("no answer")

    with pytest.raises(RecipeError, match=r"--ray nowhere:1: no Ray could be reached .*no answer.*ray start --head"):
        workers._start(SimpleNamespace(init=refuse), "nowhere:1", None)
