"""DKD: its loss written out, its limits, what the warm-up does, maps and tokens, and whole runs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_cases import distilled, logits, settled, situation

from limbeck.errors import RecipeError
from limbeck.method import Progress
from limbeck.methods.dkd import DKD
from limbeck.methods.kd import KD


def written_out(s, t, y, temperature, alpha, beta):
    """One sample after another, on probabilities."""
    total = 0.0
    for ours, theirs, label in zip((s / temperature).softmax(-1), (t / temperature).softmax(-1), y.tolist()):
        q, p = ours[label], theirs[label]
        total += alpha * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        for c in range(len(ours)):
            if c != label:
                other_p, other_q = theirs[c] / (1 - p), ours[c] / (1 - q)
                total += beta * other_p * (other_p / other_q).log()
    return temperature**2 * total / len(y)


@settings(max_examples=25)
@given(st.floats(0.5, 8), st.floats(0, 2), st.floats(0, 9), st.floats(0, 2))
def test_the_loss_is_the_papers(temperature, alpha, beta, task_weight):
    where = situation()
    method = DKD(temperature=temperature, alpha=alpha, beta=beta, weight=1.5, task_weight=task_weight)
    batch = settled(method, where)
    s, t = logits(where, batch)
    expected = task_weight * F.cross_entropy(s, batch["label"])
    expected += 1.5 * written_out(s, t, batch["label"], temperature, alpha, beta)
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_a_teacher_that_is_equally_sure_everywhere_makes_it_kd():
    """KD weighs the second half by 1 - p_y: with every logit vector a permutation of one, that is a number."""
    where = situation()
    row = torch.tensor([2.0, 1.0, 0.0, -1.0]).double()
    where.data["train"].tensors["label"] = torch.zeros(20, dtype=torch.int64)
    where.teacher.model.out.weight.data.zero_()
    where.teacher.model.out.bias.data.copy_(row)
    rest = float(1 - (row / 4).softmax(0)[0])
    batch = settled(decoupled := DKD(alpha=1.0, beta=rest, weight=1.0), where)
    settled(plain := KD(temperature=4.0), where)
    torch.testing.assert_close(decoupled.loss(batch).total(), plain.loss(batch).total())


def test_the_label_is_the_datas_and_not_the_teachers_guess():
    where = situation()
    batch = settled(method := DKD(weight=1.0, task_weight=0), where)
    s, t = logits(where, batch)
    assert (t.argmax(1) != batch["label"]).any()
    guessed = written_out(s, t, t.argmax(1), 4.0, 1.0, 8.0)
    assert abs(float((method.loss(batch).total() - guessed).detach())) > 1e-3


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_every_labelled_pixel_and_token_counts_once(kind):
    where = situation(kind)
    batch = settled(method := DKD(weight=1.0, task_weight=0), where)
    s, t = logits(where, batch)
    counts = batch["label"] >= 0
    assert 0 < counts.sum() < counts.numel()
    expected = written_out(s[counts], t[counts], batch["label"][counts], 4.0, 1.0, 8.0)
    torch.testing.assert_close(method.loss(batch).total(), expected)
    batch = settled(method := DKD(weight=1.0, task_weight=0, mask="kept"), where)
    counts &= batch["kept"]
    expected = written_out(s[counts], t[counts], batch["label"][counts], 4.0, 1.0, 8.0)
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_nothing_labelled_gives_nothing_and_no_nan():
    where = situation("maps")
    where.data["train"].tensors["label"].fill_(-100)
    batch = settled(method := DKD(weight=1.0, task_weight=0), where)
    total = method.loss(batch).total()
    total.backward()
    assert total.item() == 0.0
    assert float(where.student.model.out.weight.grad.abs().max()) == 0.0


def test_the_published_warm_up_is_a_schedule_over_a_twelfth():
    where = situation()
    batch = settled(method := DKD(), where)
    found = []
    for step in (0, 1, 2, 24):
        object.__setattr__(method, "progress", Progress(step=step, steps=24))
        found.append(float(method.loss(batch).parts["nontarget"].weight))
    assert found == pytest.approx([0.0, 4.0, 8.0, 8.0])
    assert DKD().options()["weight"] == {"use": "warmup", "share": pytest.approx(1 / 12), "then": 1.0}


def test_no_gradient_reaches_the_teacher():
    where = situation()
    batch = settled(method := DKD(weight=1.0), where)
    method.loss(batch).total().backward()
    assert all(p.grad is None for p in where.teacher.model.parameters())


def test_options_are_checked():
    with pytest.raises(RecipeError, match="temperature"):
        DKD(temperature=0)
    with pytest.raises(RecipeError, match=r"unknown key 'bta' of dkd. Did you mean 'beta'"):
        DKD(bta=2)


def test_it_adds_to_others():
    where = situation()
    batch = settled(both := DKD(weight=1.0) + KD(), where)
    assert set(both.loss(batch).parts) == {"target", "nontarget", "kl", "task"}


@pytest.mark.parametrize("kind", ["vectors", "maps"])
def test_it_runs_from_python(tmp_path, kind):
    run = distilled({"use": "dkd", "beta": 2} if kind == "maps" else DKD(beta=2), tmp_path / "run", kind)
    assert run.result["status"] == "finished"
    log = (run.folder / "log.jsonl").read_text()
    assert '"target"' in log
    assert '"nontarget"' in log
