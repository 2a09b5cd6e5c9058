"""Logit standardisation: its loss written out, what it leaves to the student, maps and masks, and whole runs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_cases import distilled, logits, settled, situation

from limbeck.errors import RecipeError
from limbeck.methods.kd import KD
from limbeck.methods.logit_standardisation import LogitStandardisation


def written_out(s, t, temperature):
    ours, theirs = ((x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) / temperature for x in (s, t))
    p = theirs.softmax(-1)
    return temperature**2 * (p * (p.log() - ours.log_softmax(-1))).sum(-1).mean()


@given(st.floats(0.5, 8), st.floats(0, 9), st.floats(0.01, 2))
@settings(max_examples=25)
def test_the_loss_is_the_papers_and_the_task_reads_the_plain_logits(temperature, weight, task_weight):
    where = situation()
    method = LogitStandardisation(temperature=temperature, weight=weight, task_weight=task_weight)
    batch = settled(method, where)
    s, t = logits(where, batch)
    expected = task_weight * F.cross_entropy(s, batch["label"]) + weight * written_out(s, t, temperature)
    torch.testing.assert_close(method.loss(batch).total(), expected, rtol=1e-5, atol=1e-6)


def test_defaults_are_the_published_ones():
    options = LogitStandardisation().options()
    assert (options["temperature"], options["weight"], options["task_weight"]) == (2.0, 9.0, 0.1)


def test_a_student_of_any_magnitude_has_learnt_it_all_when_the_shape_is_right():
    where = situation()
    batch = settled(method := LogitStandardisation(task_weight=0), where)
    settled(plain := KD(task_weight=0), where)
    teacher = where.teacher(batch)["logits"]
    for factor in (0.05, 1.0, 30.0):
        student = {"logits": factor * teacher - 7}
        assert method.transfer(student, {"logits": teacher}, batch).total().item() == pytest.approx(0.0, abs=1e-6)
        assert factor == 1 or plain.transfer(student, {"logits": teacher}, batch).total().item() > 0.01


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_each_pixel_and_token_is_standardised_on_its_own(kind):
    where = situation(kind)
    batch = settled(method := LogitStandardisation(mask="kept", weight=1.0, task_weight=0), where)
    s, t = logits(where, batch)
    expected = written_out(s[batch["kept"]], t[batch["kept"]], 2.0)
    torch.testing.assert_close(method.loss(batch).total(), expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_teacher():
    where = situation()
    batch = settled(method := LogitStandardisation(), where)
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in where.teacher.model.parameters())
    assert all(p.grad is not None for p in where.student.model.parameters())


def test_options_are_checked():
    with pytest.raises(RecipeError, match="temperature"):
        LogitStandardisation(temperature=-1)
    with pytest.raises(RecipeError, match=r"unknown key 'temp' of logit-standardisation"):
        LogitStandardisation(temp=2)


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_it_runs_from_python(tmp_path, kind):
    method = {"use": "logit-standardisation", "temperature": 3} if kind == "vectors" else LogitStandardisation()
    run = distilled(method, tmp_path / "run", kind)
    assert run.result["status"] == "finished"
    assert '"standardised_kl"' in (run.folder / "log.jsonl").read_text()
