"""AdaSPEC: which tokens are chosen, that k = 1 is forward KL, that cutting the batch changes nothing, that a run survives."""

import json
import math

import pytest
import torch
from harness import bits, finish, fresh, survives
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from writers import Speaks, distilled, settled, situation

from limbeck.engine import weights
from limbeck.engine.course import Course
from limbeck.errors import RecipeError
from limbeck.losses import kl
from limbeck.methods.adaspec import AdaSPEC, Draft, greatest
from limbeck.methods.token_kd import ForwardKL

VALUES = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40)


@given(VALUES, st.floats(0.01, 1), st.floats(-3, 3, width=16))
def test_at_least_the_share_is_chosen_ties_with_it_and_a_constant_changes_nothing(values, share, constant):
    values = torch.tensor(values, dtype=torch.float64)
    chosen = values >= greatest(values, share)
    assert chosen.sum() >= math.ceil(share * len(values) - 1e-9)
    assert (values > greatest(values, share)).sum() < max(
        1, share * len(values)
    )  # without the ties it would be too few
    moved = values + constant
    if len(values.unique()) == len(moved.unique()):  # rounding makes no ties
        assert torch.equal(chosen, moved >= greatest(moved, share))


def test_all_the_same_is_all_chosen_and_one_is_one():
    assert greatest(torch.zeros(7), 0.1) == 0
    assert greatest(torch.tensor([3.0]), 0.4) == 3
    assert greatest(torch.arange(10.0), 0.4) == 6
    assert greatest(torch.arange(10.0), 1.0) == 0


def drafting(reference=None, whole=True, **options):
    """A draft that is settled; the reference is another network of its kind, or the weights given."""
    where = situation(whole=whole)
    torch.manual_seed(7)
    method = Draft(weights.take(Speaks(whole=whole)) if reference is None else reference, **options)
    return method, where, settled(method, where)


@pytest.mark.parametrize("whole", [True, False])
def test_the_tokens_are_those_of_the_greatest_excess_and_the_loss_is_their_mean(whole):
    method, where, batch = drafting(whole=whole, k=0.4)
    found = method.draw(batch)
    reference, networks = method.reference.model, (where.student.model, where.teacher.model)
    for net in (*networks, reference):
        net.whole = True
    z, w, r = (net(batch["input_ids"]) for net in (*networks, reference))
    d, answer = kl(z, w), batch["answer"]
    delta = (d - kl(r, w))[answer].detach()
    first = delta.sort(descending=True).values[math.ceil(0.4 * len(delta)) - 1]
    expected = d[answer][delta >= first].mean()
    assert int(found["chosen"].sum()) == math.ceil(0.4 * len(delta))
    assert not (found["chosen"] & ~answer).any()
    for net in networks:
        net.whole = whole
    loss = method.loss(found).total()
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(x, list(where.student.model.parameters())) for x in (loss, expected)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not any(p.grad is not None for p in reference.parameters())


def test_a_reference_that_is_the_draft_keeps_every_token():
    method, _, batch = drafting(reference=weights.take(situation().student.model))
    assert torch.equal(method.excess(batch), torch.zeros_like(method.excess(batch)))
    assert torch.equal(method.draw(batch)["chosen"], batch["answer"])


def test_dropout_is_off_while_tokens_are_chosen_and_goes_on_afterwards():
    torch.manual_seed(3)
    where = situation(student=Speaks(dropout=0.5))
    method = Draft(weights.take(where.student.model))
    batch = settled(method, where)
    where.student.model.train()
    state = torch.get_rng_state()
    assert torch.equal(method.excess(batch), torch.zeros_like(method.excess(batch)))
    assert where.student.model.drop.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_without_an_answer_is_zero():
    method, _, batch = drafting()
    silent = batch | {"answer": torch.zeros_like(batch["answer"])}
    assert float(method.loss(method.draw(silent)).total().detach()) == 0


def test_the_choice_does_not_depend_on_how_the_batch_is_cut():
    """Rows of very different excess: cut alone, each piece would choose its own 40 per cent."""
    courses = [finish(lambda m=m: (AdaSPEC(k=0.4), situation(micro_batch=m))) for m in ("auto", 1, 3)]
    for other in courses[1:]:
        pairs = zip(courses[0].situation.student.model.parameters(), other.situation.student.model.parameters())
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_with_all_tokens_the_second_stage_is_forward_kl_from_the_same_start():
    course = finish(lambda: (AdaSPEC(k=1.0), situation()))
    plain = finish(lambda: (ForwardKL(), situation()))
    ours, theirs = (c.situation.student.model.state_dict() for c in (course, plain))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value)
    reference = course.plan.memory["reference"]
    for name, value in theirs.items():  # which is what the reference is
        assert torch.equal(reference[name], value)


def test_the_budget_of_the_reference_is_its_own():
    course = finish(lambda: (AdaSPEC(reference={"steps": 2, "lr": 0.1}), situation()))
    assert [(r.name, r.steps) for r in course.results] == [("reference", 2), ("draft", 6)]


@given(st.sampled_from([0.2, 0.4, 0.9]))
@settings(max_examples=3)
def test_fewer_tokens_lead_elsewhere(k):
    plan, where = fresh(lambda: (AdaSPEC(k=k), situation()))
    Course(plan, where).run()
    plain = finish(lambda: (ForwardKL(), situation()))
    found, expected = where.student.model.state_dict(), plain.situation.student.model.state_dict()
    assert any(not torch.allclose(found[name], expected[name], atol=1e-4) for name in found)


def test_a_cut_off_run_ends_in_the_same_bits(tmp_path):
    course = survives(lambda: (AdaSPEC(), situation(student=Speaks(dropout=0.3))), tmp_path)
    assert [r.name for r in course.results] == ["reference", "draft"]
    assert not any("reference" in name for name in bits(course))


def test_what_cannot_be_is_refused():
    with pytest.raises(RecipeError, match=r"adaspec\.k"):
        AdaSPEC(k=0.0)
    with pytest.raises(RecipeError, match="'adaspec' is a procedure of its own"):
        ForwardKL() + AdaSPEC()


def test_it_runs_from_a_recipe_and_ships_the_student_alone(tmp_path):
    run = distilled("adaspec", tmp_path)
    assert [stage["name"] for stage in run.result["stages"]] == ["reference", "draft"]
    start, shipped = (load_file(p / "model.safetensors") for p in (tmp_path / "student", run.folder / "student"))
    assert shipped.keys() == start.keys()
    assert "reference" not in json.dumps([p.name for p in (run.folder / "student").iterdir()])
