"""Blocks that are computed twice: the same gradients, less that is kept, and taps that hear and replace as before."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from two_processes import Transformer

import limbeck
from limbeck.actors import Student, Teacher
from limbeck.data import Data
from limbeck.data.tensors import TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.pieces import kept_bytes
from limbeck.engine.recompute import recomputing
from limbeck.errors import RecipeError
from limbeck.method import Outcome
from limbeck.methods.dmd2 import DMD2
from limbeck.models.toy import PictureDenoiser

sys.path.insert(0, str(Path(__file__).parents[1] / "language"))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "adapters"))
from pipelines import pixels
from points import situation
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
    with recomputing(student, on=on):
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


def generator(kind, folder):
    """DMD2 with a discriminator on 8x8 pictures: student, teacher and critic are U-Nets of ours, or of diffusers."""
    torch.manual_seed(0)
    if kind == "ours":
        nets = [PictureDenoiser(width=16, classes=3).double() for _ in range(2)]
        actors = Student(nets[0]), Teacher(nets[1])
    else:
        pytest.importorskip("diffusers")
        pixels(folder, classes=3)
        actors = Student(folder, dtype="fp64"), Teacher(folder, dtype="fp64")
    g = torch.Generator().manual_seed(1)
    columns = {"x": torch.rand(8, 1, 8, 8, generator=g).double(), "label": torch.randint(0, 3, (8,), generator=g)}
    where = situation(teacher=False, data=Data({"train": TensorSplit(columns)}, {"x": "", "label": ""}, source="drawn"))
    where.student, where.teacher = actors
    for actor in actors:
        actor.look_at(["x", "label", "id"])
    method = DMD2(gan_weight=0.1)
    settle(method, where)
    for module in (actors[0].model, method.double()):
        module.train()
    return method, where.data.splits["train"].__getitems__(list(range(8)))


def played(method, batch, on):
    """One step of the student and one of the critic: every gradient, and the bytes that each loss keeps."""
    torch.manual_seed(3)
    found, kept = [], []
    networks = [method.student.model, method.critic, method.judge]
    with recomputing(method.student, *method.actors(), on=on), torch.no_grad():
        play = method.learn(batch, method.progress)
        update = next(play)
        while update is not None:
            besides = [*(p for net in networks for p in net.parameters()), *update.batch.values()]
            with torch.enable_grad():
                kept.append(kept_bytes(lambda update=update: update.loss(update.batch).total(), besides=besides))
                update.loss(update.batch).total().backward()
            for net in networks:
                found += [p.grad for p in net.parameters() if p.grad is not None]
                net.zero_grad()
            try:
                update = play.send(Outcome())
            except StopIteration:
                update = None
    return found, kept


@pytest.mark.parametrize("kind", ["ours", "diffusers"])
def test_student_and_critic_of_a_generator_are_computed_twice(kind, tmp_path):
    method, batch = generator(kind, tmp_path / "pipeline")
    (plain, whole), (again, less) = (played(method, batch, on) for on in (False, True))
    assert len(plain) > 2 * sum(1 for _ in method.student.model.parameters())
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert all(b < 0.8 * a for a, b in zip(whole, less, strict=True))


def test_a_critic_without_blocks_is_kept():
    student, other = own()[0], Student(nn.Linear(3, 2), view="x")
    with recomputing(student, other):
        assert "forward" in vars(student.model.blocks[0])
        assert "forward" not in vars(other.model)


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
