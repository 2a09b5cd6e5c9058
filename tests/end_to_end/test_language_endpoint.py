"""A language model behind a server teaches as the same model here does, when it gives all log-probabilities; with fewer nearly so."""

import sys
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit

sys.path.insert(0, str(Path(__file__).parents[1] / "teachers"))
sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from serving import served
from small_models import SIZE, llama

TRAIN = {"steps": 4, "batch_size": 4, "lr": 0.5, "optimizer": "sgd"}


def texts():
    g = torch.Generator().manual_seed(0)

    def part(rows, first):
        ids = torch.randint(2, SIZE, (rows, 6), generator=g)
        target = torch.cat([ids[:, 1:], torch.full((rows, 1), -100)], 1)
        columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "target": target}
        return TensorSplit({**columns, "answer": target >= 0, "answer_bytes": torch.full((rows,), 10)}, first)

    splits = {"train": part(12, 0), "validation": part(4, 12), "test": part(4, 16)}
    return Data(splits, dict.fromkeys(splits["train"].tensors, "read"), source="texts")


def learn(out, teacher, method):
    student = Student(llama(0))
    run = limbeck.distill(
        out=out, task="text", data=texts(), teacher=teacher, student=student, method=method, control="none", train=TRAIN
    )
    return student.model.state_dict(), run.result


@pytest.mark.parametrize("method", ["token-kd", "forward-kl", "reverse-kl"])
def test_all_log_probabilities_teach_as_the_network_does(method, tmp_path):
    with served(model=llama(1)) as fake:
        far = {"endpoint": fake.address, "model": "tiny", "classes": SIZE, "top_logprobs": SIZE}
        ours, told = learn(tmp_path / "far", far, method)
        asked = {tuple(body["prompt"]) for body in fake.asked}
        assert len(fake.asked) == len(asked) == 20
        theirs, known = learn(tmp_path / "near", Teacher(llama(1)), method)
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-5)
        assert told["teacher"]["metric"] == pytest.approx(known["teacher"]["metric"], rel=1e-5)


def test_a_few_log_probabilities_teach_nearly_so(tmp_path):
    with served(model=llama(1)) as fake:
        far = {"endpoint": fake.address, "model": "tiny", "classes": SIZE, "top_logprobs": 3}
        ours, _ = learn(tmp_path / "far", far, "forward-kl")
        theirs, _ = learn(tmp_path / "near", Teacher(llama(1)), "forward-kl")
    before = llama(0).state_dict()
    moved = sum(float((theirs[n] - before[n]).square().sum()) for n in ours)
    apart = sum(float((theirs[n] - ours[n]).square().sum()) for n in ours)
    assert 0 < apart < 0.3 * moved
