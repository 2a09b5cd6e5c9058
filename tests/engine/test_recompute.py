"""Blocks that are computed twice: the same gradients, less that is kept, and taps that hear and replace as before."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from two_processes import Transformer

import limbeck
from limbeck.actors import Student
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit
from limbeck.engine.pieces import kept_bytes
from limbeck.engine.recompute import recomputing
from limbeck.errors import RecipeError

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
from small_models import llama


class Dropped(Transformer):
    """Blocks with dropout, in double precision."""

    def __init__(self):
        super().__init__(8)
        self.blocks = nn.ModuleList(nn.Sequential(block, nn.Dropout(0.3)) for block in self.blocks)
        self.double()


def languages():
    ids = torch.tensor([[2, 3, 4, 5, 6, 7], [3, 3, 8, 9, 2, 1]])
    student = Student(llama().double()).tap("inner", "model.layers.0.mlp")
    return student, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def own():
    torch.manual_seed(0)
    student = Student(Dropped(), view="x", taps={"inner": "blocks.0", "logits": "output"})
    return student, {"x": torch.randn(5, 6, dtype=torch.float64)}


def of(student, batch, *, on, replace=None):
    """Output, tapped value and every gradient, with the same dropout."""
    student.model.train()
    student.model.zero_grad()
    torch.manual_seed(7)
    with recomputing(student, on):
        signals = student(batch, replace=replace)
        logits = signals["logits"]
        logits = logits.materialise() if hasattr(logits, "materialise") else logits
        (logits.square().mean() + signals["inner"].tanh().mean()).backward()
    return logits.detach(), signals["inner"].detach(), [p.grad.clone() for p in student.model.parameters()]


@pytest.mark.parametrize("make", [languages, own])
@pytest.mark.parametrize("replaced", [False, True])
def test_gradients_are_the_same(make, replaced):
    student, batch = make()
    replace = {"inner": lambda value: value.cos() + 0.1} if replaced else None
    kept, again = (of(student, batch, on=on, replace=replace) for on in (False, True))
    torch.testing.assert_close(kept[0], again[0], rtol=0, atol=0)
    torch.testing.assert_close(kept[1], again[1], rtol=0, atol=0)
    for one, other in zip(kept[2], again[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    if replaced:
        plain = of(student, batch, on=False)
        assert not torch.allclose(plain[2][0], kept[2][0])


@pytest.mark.parametrize("make", [languages, own])
def test_less_is_kept(make):
    student, batch = make()
    student.model.train()

    def forward():
        logits = student(batch)["logits"]
        return logits.hidden if hasattr(logits, "hidden") else logits

    besides = list(student.model.parameters())
    whole = kept_bytes(forward, besides=besides)
    with recomputing(student):
        less = kept_bytes(forward, besides=besides)
    assert less < 0.5 * whole
    assert kept_bytes(forward, besides=besides) == whole  # it ends with the block


def test_nothing_is_computed_twice_in_eval_mode_and_copies_are_whole():
    student, batch = own()
    calls = []
    student.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with recomputing(student):
        student.model.eval()
        student(batch)["logits"].sum().backward()
        assert len(calls) == 1
        copied = copy.deepcopy(student.model)
        assert copied.blocks[0].forward.block is copied.blocks[0]
    assert "forward" not in vars(student.model.blocks[0])
    torch.testing.assert_close(copied(batch["x"]), student.model(batch["x"]))


def test_a_network_without_blocks_is_refused():
    student = Student(nn.Linear(3, 2), view="x")
    with pytest.raises(RecipeError, match=r"Linear has none \(no nn\.ModuleList\)"), recomputing(student):
        raise AssertionError


def test_a_run_learns_the_same(tmp_path):
    g = torch.Generator().manual_seed(0)

    def part(rows, first):
        return TensorSplit(
            {"x": torch.randn(rows, 6, generator=g), "label": torch.randint(0, 3, (rows,), generator=g)}, first
        )

    splits = {"train": part(16, 0), "validation": part(8, 16)}
    data = Data(splits, {"x": "numbers", "label": "class"}, labels={"label": ["a", "b", "c"]}, source="drawn")
    found = []
    for on in (False, True):
        torch.manual_seed(1)
        student = Student(Transformer(), view="x")
        limbeck.distill(
            out=tmp_path / str(on),
            data=data,
            student=student,
            method="supervised",
            control="none",
            train={"steps": 4, "batch_size": 8, "micro_batch": 4, "gradient_checkpointing": on},
        )
        found.append(student.model.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=0, atol=1e-6)
