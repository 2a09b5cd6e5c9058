"""A run of a student with low-rank adapters: small checkpoints, an exact restart, and a plain network at the end."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

import limbeck
from limbeck.actors import Student
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit
from limbeck.models.lora import adapters

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from small_models import SIZE, llama

TRAIN = {"steps": 5, "batch_size": 4, "lr": 1e-2, "save_every": 0}


def texts():
    g = torch.Generator().manual_seed(0)

    def part(rows, first):
        ids = torch.randint(2, SIZE, (rows, 6), generator=g)
        target = torch.cat([ids[:, 1:], torch.full((rows, 1), -100)], 1)
        columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target": target}
        return TensorSplit({**columns, "answer": target >= 0, "answer_bytes": torch.full((rows,), 10)}, first)

    splits = {"train": part(12, 0), "validation": part(4, 12), "test": part(4, 16)}
    return Data(splits, dict.fromkeys(splits["train"].tensors, "read"), source="texts")


@pytest.fixture
def keys(tmp_path):
    """A recipe whose student is a saved Llama with adapters."""
    for seed, name in enumerate(("student", "teacher")):
        llama(seed).save_pretrained(tmp_path / name)
    lora = {"rank": 2, "alpha": 8, "dropout": 0.3}
    return {
        "task": "text",
        "data": texts(),
        "teacher": str(tmp_path / "teacher"),
        "student": {"model": str(tmp_path / "student"), "lora": lora},
        "method": "token-kd",
        "control": "none",
        "train": TRAIN,
    }


def test_the_student_that_ships_is_a_plain_network(keys, tmp_path):
    run = limbeck.distill(out=tmp_path / "run", **keys)
    folder = tmp_path / "run" / "student"
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(llama().state_dict())
    shipped, before = AutoModelForCausalLM.from_pretrained(folder), llama(0)
    assert adapters(shipped) == {}
    changed = {n for n, p in shipped.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert {n.split(".")[-2] for n in changed} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    again = Student(tmp_path / "run")
    assert adapters(again.model) == {}
    batch = texts()["test"].__getitems__([0, 1])
    torch.testing.assert_close(
        again(batch)["logits"].materialise(), shipped.eval()(batch["input_ids"]).logits, rtol=1e-5, atol=1e-5
    )
    assert run.result["student"]["parameters"] == sum(p.numel() for p in before.parameters())
    assert "lora: {rank: 2" in (tmp_path / "run" / "recipe.yaml").read_text()


def test_checkpoints_hold_adapters_alone_and_a_restart_is_exact(keys, tmp_path, monkeypatch):
    limbeck.distill(out=tmp_path / "whole", **keys)
    newest = max((tmp_path / "whole" / "checkpoints").iterdir())
    with safe_open(newest / "tensors.safetensors", "pt") as file:
        held = [name for name in file.keys() if "proj" in name or "embed" in name or "norm" in name]  # noqa: SIM118
    assert held
    assert all("lora_" in name for name in held)

    from limbeck.engine.trainer import Trainer

    step = Trainer._step

    def dies(self, *args):
        if self.step == 3:
            raise KeyboardInterrupt
        step(self, *args)

    monkeypatch.setattr(Trainer, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        limbeck.distill(out=tmp_path / "cut", **keys)
    monkeypatch.setattr(Trainer, "_step", step)
    limbeck.distill(out=tmp_path / "cut", **keys)
    with (
        safe_open(tmp_path / "whole" / "student" / "model.safetensors", "pt") as one,
        safe_open(tmp_path / "cut" / "student" / "model.safetensors", "pt") as other,
    ):
        for name in one.keys():  # noqa: SIM118
            assert torch.equal(one.get_tensor(name), other.get_tensor(name)), name


def test_the_control_learns_in_the_same_way_and_is_found_again(keys, tmp_path):
    one = limbeck.distill(out=tmp_path / "one", **keys | {"control": "train"})
    two = limbeck.distill(out=tmp_path / "two", **keys | {"control": "train", "method": "reverse-kl"})
    assert (
        json.loads((tmp_path / "one" / "result.json").read_text())["control"]["metric"]
        == two.result["control"]["metric"]
    )
    assert one.result["control"]["metric"] == two.result["control"]["metric"]
    for folder in ("one", "two"):
        assert adapters(AutoModelForCausalLM.from_pretrained(tmp_path / folder / "control" / "student")) == {}
