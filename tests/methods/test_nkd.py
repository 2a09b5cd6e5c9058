"""NKD: its loss written out, its gradients in closed form, its kinship with DKD, maps and tokens, and whole runs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_cases import distilled, logits, settled, situation

from limbeck.errors import RecipeError
from limbeck.methods.dkd import DKD
from limbeck.methods.nkd import NKD


def written_out(s, t, y, temperature, gamma):
    """One sample after another, on probabilities."""
    total = 0.0
    for ours, theirs, label in zip(s, t, y.tolist()):
        total += -theirs.softmax(-1)[label] * ours.softmax(-1)[label].log()
        q, p = (x / temperature for x in (ours, theirs))
        others = [c for c in range(len(q)) if c != label]
        total += -gamma * temperature**2 * (p[others].softmax(-1) * q[others].log_softmax(-1)).sum()
    return total / len(y)


@given(st.floats(0.5, 8), st.floats(0, 4), st.floats(0, 2))
@settings(max_examples=25)
def test_the_loss_is_the_papers(temperature, gamma, task_weight):
    where = situation()
    method = NKD(temperature=temperature, gamma=gamma, weight=1.5, task_weight=task_weight)
    batch = settled(method, where)
    s, t = logits(where, batch)
    expected = task_weight * F.cross_entropy(s, batch["label"])
    expected += 1.5 * written_out(s, t, batch["label"], temperature, gamma)
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_defaults_are_those_of_the_released_loss():
    options = NKD().options()
    assert (options["temperature"], options["gamma"], options["weight"], options["task_weight"]) == (1.0, 1.5, 1.0, 1.0)


def test_the_gradient_of_the_target_part_is_the_task_s_weighted_by_the_teacher():
    """p_y (q - onehot) / B: a sample that the teacher does not believe in teaches little."""
    where = situation()
    batch = settled(method := NKD(gamma=0.0, task_weight=0), where)
    t, y = where.teacher(batch)["logits"], batch["label"]
    s = where.student(batch)["logits"].detach().requires_grad_()
    (found,) = torch.autograd.grad(method.transfer({"logits": s}, {"logits": t}, batch).total(), s)
    p_y = t.softmax(1).gather(1, y[:, None])
    torch.testing.assert_close(found, p_y * (s.softmax(1) - F.one_hot(y, 4)) / len(y))


def test_its_other_part_has_the_gradient_of_dkds():
    """They differ by the entropy of the teacher's other classes, which the student cannot change."""
    where = situation()
    nkd, dkd = (
        NKD(temperature=3.0, gamma=2.0, task_weight=0),
        DKD(temperature=3.0, beta=2.0, weight=1.0, task_weight=0),
    )
    found = []
    for method in (nkd, dkd):
        batch = settled(method, where)
        part = method.loss(batch).parts["nontarget"]
        found.append(torch.autograd.grad(part.weight * part.sum, where.student.model.out.weight)[0])
    torch.testing.assert_close(*found)
    assert found[0].abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["maps", "tokens"])
@pytest.mark.parametrize("mask", [None, "kept"])
def test_every_labelled_pixel_and_token_counts_once(kind, mask):
    where = situation(kind)
    batch = settled(method := NKD(task_weight=0, mask=mask), where)
    s, t = logits(where, batch)
    counts = (batch["label"] >= 0) & (batch["kept"] if mask else True)
    expected = written_out(s[counts], t[counts], batch["label"][counts], 1.0, 1.5)
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_no_gradient_reaches_the_teacher():
    where = situation()
    batch = settled(method := NKD(), where)
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_options_are_checked():
    with pytest.raises(RecipeError, match="temperature"):
        NKD(temperature=0)
    with pytest.raises(RecipeError, match=r"unknown key 'gama' of nkd. Did you mean 'gamma'"):
        NKD(gama=2)


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_it_runs_from_python(tmp_path, kind):
    run = distilled("nkd" if kind == "maps" else NKD(temperature=3, gamma=3.5), tmp_path / "run", kind)
    assert run.result["status"] == "finished"
    log = (run.folder / "log.jsonl").read_text()
    assert '"target"' in log
    assert '"nontarget"' in log
