"""DIST: its loss written out, what it does not ask of the student, maps and masks, pieces, and whole runs."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_cases import distilled, logits, settled, situation

from limbeck.engine.divide import Divider
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.methods.dist import DIST
from limbeck.methods.kd import KD


def written_out(s, t, temperature, beta, gamma):
    a, b = ((x.detach() / temperature).softmax(-1).numpy() for x in (s, t))
    rows = np.mean([1 - np.corrcoef(one, other)[0, 1] for one, other in zip(a, b)])
    columns = np.mean([1 - np.corrcoef(one, other)[0, 1] for one, other in zip(a.T, b.T)])
    return temperature**2 * (beta * rows + gamma * columns)


@given(st.floats(0.5, 4), st.floats(0, 3), st.floats(0, 3), st.floats(0.1, 2))
@settings(max_examples=25)
def test_the_loss_is_the_papers(temperature, beta, gamma, task_weight):
    where = situation()
    method = DIST(temperature=temperature, beta=beta, gamma=gamma, task_weight=task_weight)
    batch = settled(method, where)
    s, t = logits(where, batch)
    expected = task_weight * F.cross_entropy(s, batch["label"]).item() + written_out(s, t, temperature, beta, gamma)
    assert method.loss(batch).total().item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_defaults_are_those_of_the_released_code():
    assert {k: v for k, v in DIST().options().items() if k in ("temperature", "beta", "gamma", "weight")} == {
        "temperature": 1.0,
        "beta": 1.0,
        "gamma": 1.0,
        "weight": 1.0,
    }


def test_a_student_that_is_less_sure_in_the_same_proportions_has_learnt_everything():
    """Its probabilities are 0.3 times the teacher's plus 0.7 / 4: nothing left to learn for DIST, much for KD."""
    where = situation()
    batch = settled(method := DIST(task_weight=0), where)
    teacher = where.teacher(batch)["logits"]
    student = (0.3 * teacher.softmax(1) + 0.7 / 4).log().requires_grad_()
    loss = method.transfer({"logits": student}, {"logits": teacher}, batch).total()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert torch.autograd.grad(loss, student)[0].abs().max() < 1e-4
    settled(plain := KD(task_weight=0), where)
    assert plain.transfer({"logits": student}, {"logits": teacher}, batch).total().item() > 1e-3


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_pixels_and_tokens_are_samples_and_masked_ones_are_not_there(kind):
    where = situation(kind)
    batch = settled(method := DIST(mask="kept", beta=2.0, task_weight=0), where)
    s, t = logits(where, batch)
    expected = written_out(s[batch["kept"]], t[batch["kept"]], 1.0, 2.0, 1.0)
    assert method.loss(batch).total().item() == pytest.approx(expected, rel=1e-5)


def test_the_relation_along_the_batch_is_taken_of_the_whole_batch_however_it_is_cut():
    where = situation("maps")
    batch = settled(method := DIST(mask="kept"), where)
    gradients = []
    for pieces in (1, 5):
        where.student.model.zero_grad()
        parameters = list(where.student.model.parameters())
        taken = Divider(World.here(), nullcontext)(method.loss, batch, parameters, pieces=pieces)
        gradients.append([p.grad.clone() for p in parameters] + list(taken.values.values()))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_no_gradient_reaches_the_teacher():
    where = situation()
    batch = settled(method := DIST(), where)
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_options_are_checked():
    with pytest.raises(RecipeError, match="temperature"):
        DIST(temperature=0)
    with pytest.raises(RecipeError, match=r"unknown key 'tau' of dist"):
        DIST(tau=2)


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_it_runs_from_python(tmp_path, kind):
    run = distilled(DIST(mask="kept" if kind == "maps" else None), tmp_path / "run", kind)
    assert run.result["status"] == "finished"
    log = (run.folder / "log.jsonl").read_text()
    assert '"samples"' in log
    assert '"classes"' in log
