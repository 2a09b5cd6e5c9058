"""SinKD: its sum written out for classifiers and for language models, which tokens are taken, cuts, whole runs."""

import pytest
import torch
import torch.nn.functional as F
from harness import Net, survives
from harness import situation as classifying
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pictures import distilled as distilled_pictures
from writers import Speaks, distilled, doubled, settled, situation

from limbeck import Student, Teacher
from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.losses.transport import sinkhorn
from limbeck.methods.sinkd import SinKD, spaced


def pair(**train):
    return classifying(Student(Net(6), view="x"), Teacher(Net(6, hidden=9), view="x"), **train)


def test_of_a_classifier_it_is_the_papers_sum_over_the_batch():
    torch.manual_seed(0)
    where, method = pair(), SinKD()
    batch = settled(method, where)
    z, w = where.student.model(batch["x"]), where.teacher.model(batch["x"])
    soft = -(w / 2).softmax(1) * (z / 2).log_softmax(1) + (w / 2).softmax(1) * (w / 2).log_softmax(1)
    expected = 0.2 * F.cross_entropy(z, batch["label"]) + 0.8 * soft.sum(1).mean()
    expected = expected + 0.001 * 16 * sinkhorn(z, w).mean()
    torch.testing.assert_close(method.loss(batch).total(), expected)


def test_the_cut_does_not_show_and_a_killed_run_goes_on(tmp_path):
    def build(micro_batch="auto"):
        return SinKD(transport_weight=2.0), pair(epochs=1, micro_batch=micro_batch)

    whole, cut = survives(build, tmp_path / "whole"), survives(lambda: build(3), tmp_path / "cut")
    for ours, theirs in zip(whole.situation.student.model.parameters(), cut.situation.student.model.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("among", ["sequence", "batch"])
def test_of_a_language_model_the_answers_tokens_are_the_set(whole, among):
    where, method = doubled(situation(whole=whole)), SinKD(among=among, transport_weight=3.0, kl_temperature=1.0)
    batch = settled(method, where)
    found = torch.autograd.grad(method.loss(batch).total(), list(where.student.model.parameters()))
    answer, models = batch["answer"], (where.student.model, where.teacher.model)
    for model in models:
        model.whole = True
    z, w = (model(batch["input_ids"]) for model in models)
    if among == "batch":
        cost = sinkhorn(z[answer], w[answer]).mean()
    else:
        cost = torch.cat([sinkhorn(a[m], b[m]) for a, b, m in zip(z, w, answer)]).mean()
    total = 0.2 * F.cross_entropy(z[answer], batch["target"][answer]) + 0.8 * kl(z, w)[answer].mean() + 3 * cost
    torch.testing.assert_close(method.loss(batch).total(), total)
    for ours, theirs in zip(found, torch.autograd.grad(total, list(where.student.model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("among", ["sequence", "batch"])
def test_pieces_of_a_step_of_texts_are_the_step(among, tmp_path):
    found = []
    for micro_batch in ("auto", 3):

        def build(micro_batch=micro_batch):
            return SinKD(among=among, tokens=2), situation(whole=False, micro_batch=micro_batch, epochs=1)

        found.append(survives(build, tmp_path / str(micro_batch)).situation.student.model)
    for ours, theirs in zip(found[0].parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_tokens_are_spaced_evenly_among_those_that_count(length, most, seed):
    mask = torch.rand(3, length, generator=torch.Generator().manual_seed(seed)) < 0.6
    at, there = spaced(mask, most)
    assert at.shape == there.shape == (3, most)
    for row in range(3):
        counted, chosen = mask[row].nonzero().flatten().tolist(), at[row][there[row]].tolist()
        if len(counted) <= most:
            assert chosen == counted
        else:
            assert chosen == [counted[(2 * k + 1) * len(counted) // (2 * most)] for k in range(most)]
            assert len(set(chosen)) == most


def test_only_the_chosen_tokens_are_compared():
    where, method = situation(whole=False), SinKD(tokens=1, kl_weight=0.0, task_weight=0.0)
    batch = settled(method, where)
    part = method.loss(batch).parts["transport"]
    assert float(part.count) == 8
    assert part.mask.shape == (8, 1)


def test_what_it_cannot_compare_is_said():
    for width in (1, 3):
        where = pair()
        where.student, where.teacher = Student(Net(6, width), view="x"), Teacher(Net(6, width), view="x")
        where.task.name = "regression"
        method = SinKD().bind(where.student, where.teacher, where.task)
        where.student.shapes = where.teacher.shapes = {"logits": (width,)}
        with pytest.raises(RecipeError, match="two classes at least; for numbers"):
            method.setup()
    where, method = situation(), SinKD()
    settle(method, where)
    where.teacher.sketches = True
    with pytest.raises(RecipeError, match="some classes are known only"):
        method.setup()


def test_equal_networks_are_at_rest_when_debiased():
    net = Speaks()
    where, method = situation(student=net, teacher=net), SinKD(debiased=True, task_weight=0.0)
    loss = method.loss(settled(method, where)).total()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)


def test_it_runs_from_a_recipe(tmp_path):
    assert distilled_pictures("sinkd", tmp_path / "pictures").result["status"] == "finished"
    run = distilled({"use": "sinkd", "tokens": 4}, tmp_path)
    assert run.result["status"] == "finished"
