"""A teacher that is rounded, or lives elsewhere: what it gives, what it refuses, what is said of it."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit
from limbeck.errors import RecipeError
from limbeck.models.quantising import Packed
from limbeck.recipe import Recipe
from limbeck.signals import Projection
from limbeck.teachers import housed
from limbeck.teachers.housed import Housed

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from small_models import llama


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))


BATCH = {"x": torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), "id": torch.arange(5)}


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_rounded_teacher_answers_and_is_known(quantize):
    plain = Teacher(net(), view="x", taps={"hint": "1", "first": "0"})
    rounded = Housed(net(), view="x", taps={"hint": "1", "first": "0"}, quantize=quantize)
    ours, theirs = rounded(BATCH), plain(BATCH)
    for name in ("hint", "first"):
        assert ours[name].shape == theirs[name].shape
        assert 0 < (ours[name] - theirs[name]).norm() / theirs[name].norm() < 0.1
    assert not ours["hint"].requires_grad
    assert rounded.parameters_count() == plain.parameters_count()
    assert rounded.bytes_count() < plain.bytes_count()
    assert rounded.fingerprint() == f"{plain.fingerprint()}-{quantize}"
    assert rounded.probe(BATCH) == plain.probe(BATCH)
    rounded.mode, rounded.learning = "frozen", False
    with pytest.raises(RecipeError, match=r"its weights are rounded .*Leave out teacher\.quantize"):
        rounded.mode = "through"
    with pytest.raises(RecipeError, match=r"trains the teacher, which teacher\.quantize rules out"):
        rounded.learning = True


def test_a_rounded_language_model_gives_its_head():
    teacher = Housed(llama(), quantize="int4")
    ids = torch.tensor([[2, 3, 4]])
    logits = teacher({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["logits"]
    assert isinstance(logits, Projection)
    assert torch.equal(logits.weight, llama().lm_head.weight)


def test_what_is_shown_goes_there_and_what_is_said_comes_back(monkeypatch):
    """Moves are written down: there is one device only where tests run."""
    teacher = Housed(net(), view="x", taps={"hint": "0"}, device="cpu")
    moves = []

    def note(self, value, device):
        moves.append((tuple(value.shape), str(device)))
        return value

    monkeypatch.setattr(Housed, "_moved", note)
    teacher.device = torch.device("cuda:1")
    signals = teacher(BATCH)
    assert moves[0] == ((5, 6), "cuda:1")
    assert sorted(moves[1:]) == [((5, 3), "cpu"), ((5, 40), "cpu")]
    moves.clear()
    again = teacher(BATCH, replace={"hint": lambda value: value * 0 + 1})
    assert ((5, 40), "cpu") in moves[1:3]  # the method is given the feature where the batch is
    assert moves[2] == ((5, 40), "cuda:1")  # and its own goes on there
    assert not torch.equal(signals["logits"], again["logits"])
    torch.testing.assert_close(again["hint"], torch.ones(5, 40))


def test_everything_in_a_value_is_moved():
    teacher = Housed(net(), view="x", device="cpu")
    meta = torch.device("meta")
    hidden, weight = torch.randn(2, 4), torch.randn(7, 4)
    found = teacher._moved(
        {"a": Projection(hidden, weight, torch.zeros(7), 2.0, 3.0), "b": [hidden, "text"], "c": (hidden,), "d": None},
        meta,
    )
    assert found["a"].hidden.device == found["a"].weight.device == found["a"].bias.device == meta
    assert (found["a"].scale, found["a"].softcap) == (2.0, 3.0)
    assert found["b"][0].device == found["c"][0].device == meta
    assert (found["b"][1], found["d"]) == ("text", None)
    once = teacher._moved(Projection(hidden, weight), meta)
    assert once.weight is found["a"].weight  # the head is moved once


def test_it_stays_where_it_is():
    teacher = Housed(net(), view="x", device="cpu")
    before = teacher.model[0].weight
    assert teacher.model.to("meta") is teacher.model
    assert teacher.model[0].weight is before
    assert before.device.type == "cpu"
    with pytest.raises(RecipeError, match=r"teacher\.device rules out"):
        teacher.learning = True
    teacher.mode = "through"
    assert teacher.mode == "through"


@pytest.mark.parametrize("device", ["cuda:77", "gpu", "cpu:x"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(RecipeError, match=rf"teacher\.device={device}: there is no such device .*There is: cpu"):
        Housed(net(), view="x", device=device)


def test_a_recipe_says_it_and_builds_it(tmp_path):
    recipe = Recipe.of(
        {"teacher": {"model": "torch.nn:Linear", "args": {"in_features": 3, "out_features": 2}, "device": "cpu"}}
    )
    assert recipe.to_mapping()["teacher"]["device"] == "cpu"
    assert recipe.to_mapping()["teacher"]["quantize"] is None
    assert isinstance(recipe.build_teacher(), Housed)
    mine = Housed(net(), view="x", quantize="int4")
    given = Recipe.of({"teacher": mine})
    assert given.build_teacher() is mine
    assert given.to_mapping()["teacher"]["quantize"] == "int4"
    with pytest.raises(RecipeError, match=r"teacher\.quantize"):
        Recipe.of({"teacher": {"model": "a:b", "quantize": "int3"}})


@pytest.mark.parametrize("keys", [{"quantize": "int8"}, {"quantize": "int4"}, {"device": "cpu"}])
def test_a_run_is_taught_by_it(keys, tmp_path, monkeypatch):
    (tmp_path / "nets_here.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    g = torch.Generator().manual_seed(0)

    def part(rows, first):
        return TensorSplit(
            {"x": torch.randn(rows, 6, generator=g), "label": torch.randint(0, 3, (rows,), generator=g)}, first
        )

    splits = {"train": part(16, 0), "validation": part(8, 16), "test": part(8, 24)}
    data = Data(splits, {"x": "numbers", "label": "class"}, {"label": ["a", "b", "c"]}, source="drawn")
    student = Student(net(1), view="x")
    run = limbeck.distill(
        out=tmp_path / "run",
        data=data,
        teacher={"model": "nets_here:net", "view": "x", **keys},
        student=student,
        method="kd",
        control="none",
        train={"steps": 3, "batch_size": 8},
    )
    assert run.result["teacher"]["parameters"] == 6 * 40 + 40 + 40 * 3 + 3
    assert not any(isinstance(m, Packed) for m in student.model.modules())
    assert not torch.equal(student.model[0].weight, net(1)[0].weight)
    del sys.modules["nets_here"]


def test_devices_are_named():
    assert housed._known(None) is None
    assert housed._known("cpu") == torch.device("cpu")
