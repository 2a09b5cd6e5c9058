"""SSLD: its divergences, that labels play no part, how unlabelled rows are chosen and drawn, and whole runs."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from harness import survives
from hypothesis import given
from hypothesis import strategies as st
from logit_cases import data, distilled, logits, settled, situation

from limbeck.data.tensors import TensorSplit
from limbeck.engine.course import settle
from limbeck.engine.divide import Divider
from limbeck.engine.processes import World
from limbeck.errors import RecipeError
from limbeck.losses import js, kl
from limbeck.method import Progress
from limbeck.methods.kd import KD
from limbeck.methods.label_free import SSLD, surest_per_class


def pool(rows=30, dtype=torch.float64, first=1000):
    g = torch.Generator().manual_seed(7)
    return TensorSplit({"x": torch.randn(rows, 5, generator=g).to(dtype)}, first)


def with_pool(dtype=torch.float64, **train):
    where = situation(dtype=dtype, **train)
    where.data = data(dtype=dtype, pool=pool(dtype=dtype))
    return where


def with_seeds(batch):
    return batch | {"view_seed": torch.arange(100, 100 + len(batch["id"]))}


def test_each_divergence_is_what_it_is_called():
    where = situation()
    for name in ("jeffreys", "js", "kl"):
        batch = settled(method := SSLD(divergence=name, temperature=2.0), where)
        s, t = logits(where, batch)
        expected = {
            "jeffreys": (kl(s, t, temperature=2.0) + kl(t, s, temperature=2.0)) / 2,
            "js": js(s, t, temperature=2.0),
            "kl": kl(s, t, temperature=2.0),
        }[name]
        loss = method.loss(batch)
        torch.testing.assert_close(loss.total(), expected.mean())
        assert len(loss.parts) == 1


def test_the_released_code_takes_the_sum_and_the_number_of_classes():
    where = situation()
    batch = settled(method := SSLD(parity="released"), where)
    s, t = logits(where, batch)
    p, q = t.softmax(1), s.softmax(1)
    expected = 4 / 2 * ((p - q) * (p.log() - q.log())).sum()
    torch.testing.assert_close(method.loss(batch).total(), expected)
    settled(mean := SSLD(), where)
    torch.testing.assert_close(mean.loss(batch).total() * 4 * len(s), expected)
    found = []
    for pieces in (1, 5):  # a sum stays the sum of the whole batch
        where.student.model.zero_grad()
        parameters = list(where.student.model.parameters())
        Divider(World.here(), nullcontext)(method.loss, batch, parameters, pieces=pieces)
        found.append(where.student.model.out.weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("divergence", ["jeffreys", "js"])
def test_student_and_teacher_may_be_exchanged_and_equals_have_nothing_to_say(divergence):
    where = situation()
    batch = settled(method := SSLD(divergence=divergence), where)
    ours, theirs = ({"logits": x} for x in logits(where, batch))
    one, other = method.transfer(ours, theirs, batch).total(), method.transfer(theirs, ours, batch).total()
    torch.testing.assert_close(one, other)
    assert method.transfer(ours, ours, batch).total().item() == pytest.approx(0.0, abs=1e-15)
    assert one > 1e-3


def test_no_label_is_read():
    where = situation()
    batch = settled(method := SSLD(), where)
    loss = method.loss(batch).total()
    for labels in (torch.full((12,), 3), torch.full((12,), -100)):
        assert torch.equal(method.loss(batch | {"label": labels}).total(), loss)
    del batch["label"]
    assert torch.equal(method.loss(batch).total(), loss)


@pytest.mark.parametrize("kind", ["maps", "tokens"])
def test_every_pixel_and_token_counts_once(kind):
    where = situation(kind)
    batch = settled(method := SSLD(divergence="kl", mask="kept"), where)
    s, t = logits(where, batch)
    torch.testing.assert_close(method.loss(batch).total(), kl(s, t)[batch["kept"]].mean())


def test_the_surest_rows_of_each_class():
    sure = torch.tensor([0.9, 0.5, 0.8, 0.9, 0.7, 0.4])
    guessed = torch.tensor([0, 0, 0, 0, 2, 2])
    assert surest_per_class(sure, guessed, 1).tolist() == [0, 4]
    assert surest_per_class(sure, guessed, 3).tolist() == [0, 2, 3, 4, 5]
    assert surest_per_class(sure[:0], guessed[:0], 3).tolist() == []


@given(st.lists(st.tuples(st.floats(0, 1, width=16), st.integers(0, 3)), max_size=20), st.integers(1, 5))
def test_the_choice_has_no_row_twice_no_class_too_often_and_nobody_surer_left_out(rows, most):
    sure, guessed = torch.tensor([s for s, _ in rows]), torch.tensor([c for _, c in rows], dtype=torch.int64)
    chosen = surest_per_class(sure, guessed, most).tolist()
    assert chosen == sorted(set(chosen))
    for c in range(4):
        here = [i for i in range(len(rows)) if rows[i][1] == c]
        inside, outside = [i for i in here if i in chosen], [i for i in here if i not in chosen]
        assert len(inside) == min(most, len(here))
        assert not outside or min(rows[i][0] for i in inside) >= max(rows[i][0] for i in outside)


def test_a_step_mixes_labelled_rows_with_those_they_draw():
    where = with_pool()
    batch = with_seeds(settled(method := SSLD(unlabelled="pool", per_row=2, divergence="kl"), where))
    (update,) = method.learn(batch, Progress())
    both = update.batch
    assert torch.equal(both["x"][:12], batch["x"])
    assert both["label"].tolist() == batch["label"].tolist() + [-100] * 24
    drawn = both["id"][12:] - 1000
    assert torch.equal(both["x"][12:], where.data["pool"].tensors["x"][drawn])
    assert drawn.min() >= 0
    assert len(drawn.unique()) > 10
    assert len(both["view_seed"].unique()) == 36
    s, t = logits(where, both)
    torch.testing.assert_close(update.loss(both).total(), kl(s, t).mean())
    assert {len(value) for value in both.values()} == {36}


def test_what_a_row_draws_does_not_depend_on_its_neighbours():
    where = with_pool()
    batch = with_seeds(settled(method := SSLD(unlabelled="pool"), where))
    some = {key: value[3:7] for key, value in batch.items()}
    assert torch.equal(method.joined(some)["id"][4:], method.joined(batch)["id"][12:][3:7])
    later = batch | {"view_seed": batch["view_seed"] + 1}
    assert not torch.equal(method.joined(later)["id"], method.joined(batch)["id"])


def test_with_a_task_the_mean_is_over_the_labelled_rows():
    where = with_pool()
    batch = with_seeds(settled(method := SSLD(unlabelled="pool", task_weight=0.5, weight=0.0), where))
    (update,) = method.learn(batch, Progress())
    expected = 0.5 * F.cross_entropy(where.student(batch)["logits"], batch["label"])
    torch.testing.assert_close(update.loss(update.batch).total(), expected)
    mixed = batch | {"label": batch["label"].masked_fill(torch.arange(12) < 5, -1)}
    (update,) = SSLD.learn(method, mixed, Progress())
    expected = 0.5 * F.cross_entropy(where.student(batch)["logits"][5:], batch["label"][5:])
    torch.testing.assert_close(update.loss(update.batch).total(), expected)


def test_the_teacher_chooses_among_the_unlabelled_once():
    where = with_pool()
    batch = with_seeds(settled(method := SSLD(unlabelled="pool", per_class=2), where))
    p = where.teacher.model(where.data["pool"].tensors["x"]).softmax(1)
    expected = surest_per_class(*p.max(1), 2)
    assert torch.equal(method.pool, expected)
    assert 2 <= len(expected) <= 8
    assert set((method.joined(batch)["id"][12:] - 1000).tolist()) <= set(expected.tolist())
    assert f"draws from {len(expected)} of the 30 rows of 'pool'" in method.notices[-1]
    assert torch.equal(method.surest(where.data["pool"], 2, size=7), expected)  # however it is asked


def test_without_more_data_it_is_kd_without_labels():
    where = situation()
    batch = settled(method := SSLD(divergence="kl"), where)
    settled(plain := KD(temperature=1.0, task_weight=0), where)
    (update,) = method.learn(batch, Progress())
    assert torch.equal(update.loss(update.batch).total(), plain.loss(batch).total())


def test_what_does_not_fit_is_said_before_training():
    with pytest.raises(RecipeError, match="no split 'poool'. Did you mean 'pool'"):
        settle(SSLD(unlabelled="poool"), with_pool())
    with pytest.raises(RecipeError, match="per_class chooses among the rows of a split"):
        settle(SSLD(per_class=3), situation())
    with pytest.raises(RecipeError, match="parity=released computes jeffreys, and divergence is js"):
        settle(SSLD(parity="released", divergence="js"), situation())
    where = with_pool()
    del where.data["pool"].tensors["x"]
    with pytest.raises(RecipeError, match="the split 'pool' has no column 'x'"):
        settle(SSLD(unlabelled="pool"), where)
    where = situation()
    where.task = None
    with pytest.raises(RecipeError, match="set task=classification"):
        settle(SSLD(task_weight=1.0), where)
    maps = situation("maps")
    maps.data.splits["pool"] = maps.data["train"]
    with pytest.raises(RecipeError, match="pixels or tokens"):
        settle(SSLD(unlabelled="pool", per_class=3), maps)


def test_a_run_that_was_cut_off_has_the_same_pool_and_draws(tmp_path):
    def factory():
        return SSLD(unlabelled="pool", per_class=3), with_pool(torch.float32, epochs=1)

    survives(factory, tmp_path)


def test_it_runs_from_python(tmp_path):
    method = {"use": "ssld", "unlabelled": "pool", "per_class": 4}
    run = distilled(method, tmp_path / "run", given=data(dtype=torch.float32, pool=pool(dtype=torch.float32)))
    assert run.result["status"] == "finished"
    log = (run.folder / "log.jsonl").read_text()
    assert '"jeffreys"' in log
    assert '"task"' not in log
