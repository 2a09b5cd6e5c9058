"""The methods that cross tokenizers, from recipe to student: chat models with a tokenizer each, made on the spot."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from small_images import in_halves
from two_vocabularies import ANSWERS, Words, batch, pair

import limbeck
from limbeck import RecipeError, Task
from limbeck.data.tensors import Data, TensorSplit
from limbeck.engine.settings import TrainSettings
from limbeck.engine.trainer import Situation
from limbeck.methods.alm import ALM
from limbeck.methods.dskd import DSKD
from limbeck.methods.gold import GOLD
from limbeck.methods.mined import MinED
from limbeck.methods.uld import ULD

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import tiny_chat_models as tiny

METHODS = {
    "uld": {"pairs": "chunk"},
    "alm": {},
    "alm with spaces": {"use": "alm", "chunks": "space", "append_space": True, "form": "binary-kl"},
    "gold": {"student_share": 1.0, "max_new_tokens": 8},
    "dskd": {},
    "mined": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Chats, a teacher with a tokenizer of 320 tokens, a student of bytes and one with the teacher's tokenizer."""
    here = tmp_path_factory.mktemp("chat")
    data = tiny.chats(20, seed=0)
    (here / "chat.jsonl").write_text("\n".join(map(json.dumps, data)))
    texts = [message["content"] for row in data for message in row["messages"]]
    tokens, characters = tiny.tokenizer(texts, 320), tiny.tokenizer(texts, 256 + len(tiny.SPECIAL))
    for name, own, width in (("teacher", tokens, 16), ("bytes", characters, 8), ("same", tokens, 8)):
        own.save_pretrained(here / name)
        tiny.model(own, width, 1).save_pretrained(here / name)
    return here


def distilled(folder, out, name, student):
    method = METHODS[name] if "use" in METHODS[name] else {"use": name, **METHODS[name]}
    return limbeck.distill(
        task="chat",
        data=folder / "chat.jsonl",
        teacher=folder / "teacher",
        student=folder / student,
        method=method,
        train={"steps": 2, "batch_size": 4, "lr": 1e-3},
        control="none",
        out=out,
    )


def learnt(folder, out, name, student):
    """A run, after which the student's figures and weights are finite and some weights others than before."""
    run = distilled(folder, out, name, student)
    assert 0 < run.result["student"]["figures"]["bits_per_byte"] < math.inf
    before = tiny.LlamaForCausalLM.from_pretrained(folder / student).state_dict()
    after = tiny.LlamaForCausalLM.from_pretrained(out / "student").state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_student_of_bytes_learns_from_a_teacher_of_longer_tokens(name, folder, tmp_path):
    learnt(folder, tmp_path / "run", name, "bytes")


@pytest.mark.parametrize("name", ["gold"])
def test_with_one_tokenizer_the_student_writes_as_well(name, folder, tmp_path):
    learnt(folder, tmp_path / "run", name, "same")


def test_methods_that_do_not_cross_name_those_that_do(folder, tmp_path):
    with pytest.raises(
        RecipeError, match=r"split text differently .* Methods that cross tokenizers: .*alm.*dskd.*gold.*mined.*uld"
    ):
        limbeck.distill(
            task="chat",
            data=folder / "chat.jsonl",
            teacher=folder / "teacher",
            student=folder / "bytes",
            method="token-kd",
            control="none",
            out=tmp_path / "run",
        )


def situation() -> Situation:
    own = batch(ANSWERS * 6)
    columns = {k: v for k, v in own.items() if k != "id"}
    splits = {name: TensorSplit(columns, first) for name, first in (("train", 0), ("validation", 24))}
    student, teacher = pair()
    data = Data(splits, dict.fromkeys(columns, ""), {}, source="by hand")
    return Situation(student, teacher, Task("text"), data, TrainSettings(steps=4, batch_size=8, lr=1e-2))


@pytest.mark.parametrize("make", [ULD, ALM, DSKD, MinED, lambda: GOLD(student_share=0.0)])
def test_a_run_that_was_stopped_in_the_middle_ends_as_one_that_was_not(make, tmp_path):
    def made():
        torch.manual_seed(0)
        method = make()
        return method.double(), situation()

    whole, halves = in_halves(made, tmp_path)
    assert whole.keys() == halves.keys()
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    assert isinstance(situation().student.tokenizer, Words)
