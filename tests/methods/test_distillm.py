"""DistiLLM: limits of its loss, who writes when, the probability that grows, the kept texts, restarts, a whole run."""

import math

import pytest
import torch
from harness import survives
from writers import SIZE, Speaks, distilled, settled, situation

from limbeck.engine.course import Course
from limbeck.method import Progress
from limbeck.methods.distillm import DistiLLM
from limbeck.methods.token_kd import TokenKD

HOW = {"max_new_tokens": 4}


def at_step(method, step, steps=10):
    object.__setattr__(method, "progress", Progress(step=step, steps=steps, seed=5))
    return method


def ready(start=0.0, **options):
    method, where = DistiLLM(start=start, **(HOW | options)), situation()
    return method, settled(method, where), where


@pytest.mark.parametrize(("divergence", "plain"), [("skew-kl", "forward-kl"), ("skew-reverse-kl", "reverse-kl")])
def test_for_a_small_skew_it_is_the_divergence_itself(divergence, plain):
    found = []
    for made in (DistiLLM(divergence=divergence, alpha=1e-6, **HOW), TokenKD(divergence=plain)):
        where = situation()
        batch = settled(made, where)
        found.append(torch.autograd.grad(made.loss(batch).total(), list(where.student.model.parameters())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("divergence", ["skew-kl", "skew-reverse-kl"])
def test_it_is_bounded_and_the_bound_is_reached_by_distributions_without_a_common_word(divergence):
    student, teacher = Speaks(), Speaks()
    for net, word in ((student, 2), (teacher, 3)):
        net.head.weight.data.zero_()
        net.head.bias.data = 100.0 * torch.eye(SIZE)[word]
    where, method = situation(student=student, teacher=teacher), DistiLLM(divergence=divergence, alpha=0.1, **HOW)
    batch = settled(method, where)
    assert float(method.loss(batch).total().detach()) == pytest.approx(-math.log(0.1), rel=1e-4)


def test_at_share_zero_it_never_writes_and_at_one_it_writes_less_and_less():
    method, batch, _ = ready(0.0)
    assert all(at_step(method, step).draw(batch) is batch for step in range(9))
    method, batch, where = ready(1.0, capacity=8)
    calls = []
    where.student.model.register_forward_hook(lambda *_: calls.append(1))
    wrote = []
    for step in range(60):
        calls.clear()
        found = at_step(method, step, 60).draw(batch)
        wrote.append(bool(calls))
        assert not (found["target"] >= 0).any()
        assert found["answer"].any(1).all()
    assert wrote[0]
    assert sum(wrote[:30]) > 18
    assert sum(wrote[30:]) < 12
    assert not wrote[-1]


def test_while_fewer_are_kept_than_wanted_the_student_writes():
    method, batch, _ = ready(1.0, capacity=20)
    for pushed in (8, 16, 20):
        at_step(method, 10, 10).draw(batch)  # at the end of the stage a full replay is never written to
        assert len(method.replay) == pushed
    before = method.replay.pushed.clone()
    at_step(method, 10, 10).draw(batch)
    assert torch.equal(method.replay.pushed, before)


def test_what_is_drawn_again_is_what_was_written():
    method, batch, _ = ready(1.0, capacity=8)
    first = at_step(method, 0).draw(batch)
    again = at_step(method, 10).draw(batch)
    known = {
        int(i): (row[mask == 1].tolist(), old[mask == 1].tolist())
        for i, row, mask, old in zip(
            first["id"], first["input_ids"], first["attention_mask"], first["old_log_probs"], strict=True
        )
    }
    for i, row, mask, old in zip(
        again["id"], again["input_ids"], again["attention_mask"], again["old_log_probs"], strict=True
    ):
        assert known[int(i)] == (row[mask == 1].tolist(), old[mask == 1].tolist())


def test_the_share_grows_when_validation_gets_worse():
    """A student is made worse and better between validations: only a loss that is higher by the tolerance counts."""
    method, batch, where = ready(0.0, increase=0.4, tolerance=0.05)
    data, head = where.data["validation"], where.student.model.head
    first = head.bias.detach().clone()

    def validated(shift):
        with torch.no_grad():
            head.bias.copy_(first + shift * torch.eye(SIZE)[0])  # the padding is never right: the more of it, the worse
            losses = [
                method.selection(data.__getitems__(rows)) for rows in ([0, 1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11])
            ]
            at_step(method, 1).draw(batch)
        parts = [loss.parts["task"] for loss in losses]
        expected = sum(float(p.sum) for p in parts) / sum(float(p.count) for p in parts)
        assert float(method.before) == pytest.approx(expected, rel=1e-5)
        return float(method.share)

    assert [validated(shift) for shift in (0, 0, 2, 2, 4, 3, 6)] == pytest.approx([0, 0, 0.4, 0.4, 0.8, 0.8, 1.0])
    at_step(method, 1).draw(batch)  # without a validation in between nothing changes
    assert float(method.share) == 1.0


def test_the_engine_tells_it_of_its_validations():
    """A learning rate that spoils the student from epoch to epoch makes it write more and more."""
    where = situation(epochs=4, lr=30.0)
    method = DistiLLM(increase=0.5, tolerance=0.0, capacity=4, **HOW)
    Course(method, where).run()
    assert float(method.before) > 0
    assert float(method.share) > 0
    assert len(method.replay) > 0


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_all_of_it_survives(micro_batch, tmp_path):
    def build():
        method = DistiLLM(start=0.6, increase=0.2, tolerance=0.0, capacity=10, **HOW)
        return method, situation(micro_batch=micro_batch, student=Speaks(dropout=0.3), lr=2.0)

    course = survives(build, tmp_path)
    assert len(course.methods[0].replay) > 0


def test_it_adds_up_and_runs_from_a_recipe(tmp_path):
    run = distilled([{"use": "distillm", "start": 1.0, "max_new_tokens": 10, "capacity": 5}, "reverse-kl"], tmp_path)
    assert run.result["status"] == "finished"
