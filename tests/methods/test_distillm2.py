"""DistiLLM-2: its two halves written out, limits, who writes how often, weights and skews that change, restarts."""

import pytest
import torch
from harness import finish, fresh, steps, survives
from writers import Speaks, Words, distilled, settled, situation

from limbeck.language.rollouts import Sampler, sample
from limbeck.losses import kl, reverse_kl
from limbeck.losses.token_divergences import skew_kl, skew_reverse_kl
from limbeck.method import Progress
from limbeck.methods.distillm2 import DistiLLM2
from limbeck.randomness import fold, seeds_for

HOW = {"max_new_tokens": 4}


def at_step(method, step, epoch=0, steps=10):
    object.__setattr__(method, "progress", Progress(step=step, steps=steps, epoch=epoch, epochs=2, seed=5))
    return method


def ready(whole=True, **options):
    method, where = DistiLLM2(**(HOW | options)), situation(whole=whole)
    return at_step(method, 0), settled(method, where), where


def by_answer(values, answer):
    """The mean over the tokens of each answer, then over answers."""
    return torch.stack([v[a].mean() for v, a in zip(values, answer, strict=True) if a.any()]).mean()


@pytest.mark.parametrize("whole", [True, False])
def test_the_loss_is_its_two_halves(whole):
    method, batch, where = ready(whole)
    found = method.draw(batch)
    total = method.loss(found).total()
    (grad,) = torch.autograd.grad(total, where.student.model.head.weight)
    where.student.model.whole = where.teacher.model.whole = True
    theirs, ours = ({name: value[rows] for name, value in found.items()} for rows in (slice(0, 8), slice(8, 16)))
    expected = 0.0
    for divergence, half in ((skew_kl, theirs), (skew_reverse_kl, ours)):
        z, w = where.student.model(half["input_ids"]), where.teacher.model(half["input_ids"]).detach()
        expected = expected + by_answer(divergence(z, w, alpha=0.1), half["answer"])
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, where.student.model.head.weight)[0])


def test_for_a_small_skew_it_is_forward_on_theirs_and_reverse_on_ours():
    method, batch, where = ready(alpha=0.011)
    object.__setattr__(method, "alpha", 1e-6)
    found = method.draw(batch)
    z, w = where.student.model(found["input_ids"]), where.teacher.model(found["input_ids"])
    expected = by_answer(kl(z, w)[:8], found["answer"][:8]) + by_answer(reverse_kl(z, w)[8:], found["answer"][8:])
    torch.testing.assert_close(method.loss(found).total(), expected, rtol=1e-3, atol=1e-5)


def test_both_answer_the_same_prompts():
    method, batch, where = ready(sampling_temperature=0.0)
    found = method.draw(batch)
    assert found["teacher_wrote"].tolist() == [True] * 8 + [False] * 8
    assert found["id"].tolist() == [*range(8), *range(8)]
    for rows, actor in ((slice(0, 8), where.teacher), (slice(8, 16), where.student)):
        expected = sample(actor.model, Words(), batch, temperature=0, **HOW)
        width = expected["input_ids"].shape[1]
        assert torch.equal(found["input_ids"][rows, :width], expected["input_ids"])
        assert torch.equal(found["answer"][rows, :width], expected["answer"])
    assert (found["target"][:8] >= 0).any()
    assert not (found["target"][8:] >= 0).any()  # there is nothing right in what the student wrote


def test_the_teacher_answers_once_and_the_student_once_in_each_epoch():
    method, batch, where = ready()
    counts = {"student": 0, "teacher": 0}
    for actor in (where.student, where.teacher):
        actor.model.register_forward_hook(lambda *_, who=actor.whose: counts.__setitem__(who, counts[who] + 1))
    drawn = [at_step(method, i, epoch).draw(batch) for i, epoch in enumerate((0, 0, 1))]
    assert 0 < counts["teacher"] <= 4
    assert 4 < counts["student"] <= 8
    assert torch.equal(drawn[0]["input_ids"], drawn[1]["input_ids"])
    first, last = (x["input_ids"] * x["teacher_wrote"][:, None] for x in (drawn[0], drawn[2]))
    width = min(first.shape[1], last.shape[1])
    assert torch.equal(first[:, :width], last[:, :width])
    assert sorted(set(method.ours.since.tolist())) == [-1, 1]


@pytest.mark.parametrize(("step", "b"), [(0, 1.0), (2, 1.2), (5, 1.5), (9, 1.5)])
def test_weights_move_to_the_students_half(step, b):
    method, batch, _ = ready(gradual=True)
    parts = at_step(method, step).loss(method.draw(batch)).parts
    assert parts["teachers"].weight == pytest.approx(2 - b)
    assert parts["students"].weight == pytest.approx(b)


def test_every_answer_has_a_skew_of_its_own_once_there_is_something_to_compare_with():
    method, batch, where = ready(curriculum=True, alpha=0.3)
    found = method.draw(batch)
    first = method.loss(found)
    plain = DistiLLM2(alpha=0.3, **HOW).bind(where.student, where.teacher, where.task)
    plain.look_at(where.data)
    plain.setup()
    torch.testing.assert_close(first.total(), at_step(plain, 0).loss(found).total())
    method.keep(first.record)

    log_q, log_p = (
        actor.model(found["input_ids"])[:, :-1].log_softmax(-1).gather(-1, found["input_ids"][:, 1:, None]).squeeze(-1)
        for actor in (where.student, where.teacher)
    )
    answer = found["answer"][:, :-1]
    p, q = (torch.stack([x[i][answer[i]].mean().exp() for i in range(16)]).detach() for x in (log_p, log_q))
    gap = torch.where(found["teacher_wrote"], p - q, q - p)
    torch.testing.assert_close(method.gaps[:, 0] / method.gaps[:, 1], gap.view(2, 8).mean(1))
    mean = gap.view(2, 8).mean(1).repeat_interleave(8)
    skews = (1 - 0.7 * mean / (gap + 1e-5)).clamp(0.01, 0.3)
    assert len(set(skews.tolist())) > 3
    z, w = where.student.model(found["input_ids"]), where.teacher.model(found["input_ids"])
    values = [
        (skew_kl if i < 8 else skew_reverse_kl)(z[i], w[i], alpha=float(skews[i]))[found["answer"][i]].mean()
        for i in range(16)
    ]
    expected = torch.stack(values).view(2, 8).mean(1).sum()
    torch.testing.assert_close(method.loss(found).total(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_a_training_is_the_loop_written_out(micro_batch, tmp_path):
    def build():
        return DistiLLM2(**HOW), situation(micro_batch=micro_batch, lr=0.2)

    course = survives(build, tmp_path) if micro_batch == "auto" else finish(build)
    _, where = fresh(build)
    net, other = where.student.model, where.teacher.model
    for step, batch in enumerate(steps(where)):
        loss = 0.0
        for divergence, model, seeds in (
            (skew_kl, other, seeds_for(batch["id"], 5, 0)),
            (skew_reverse_kl, net, fold(seeds_for(batch["id"], 5, step), 0)),
        ):
            found = Sampler(**HOW)(model, Words(), batch, seeds)
            values = divergence(net(found["input_ids"]), other(found["input_ids"]).detach(), alpha=0.1)
            loss = loss + by_answer(values, found["answer"])
        for p, grad in zip(net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True):
            p.data -= 0.2 * grad
    for p, expected in zip(course.situation.student.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=2e-5)


def test_with_everything_switched_on_it_survives(tmp_path):
    def build():
        method = DistiLLM2(curriculum=True, gradual=True, task_weight=0.5, **HOW)
        return method, situation(epochs=1, micro_batch=4, student=Speaks(dropout=0.2))

    survives(build, tmp_path)


def test_it_runs_from_a_recipe(tmp_path):
    run = distilled({"use": "distillm-2", "max_new_tokens": 10, "curriculum": True}, tmp_path)
    assert run.result["status"] == "finished"
