"""The sampled reverse divergence: its expectation by enumeration, its loop, returns, a teacher that only scores."""

import pytest
import torch
from harness import finish, fresh, steps, survives
from writers import PAD, SIZE, Speaks, Words, distilled, doubled, settled, situation

from limbeck.language.prompts import UNCOUNTED
from limbeck.language.rollouts import Sampler
from limbeck.losses import reverse_kl
from limbeck.method import Progress
from limbeck.methods.sampled_reverse_kl import SampledReverseKL
from limbeck.randomness import fold, seeds_for
from limbeck.sketches import Sketch

HOW = {"max_new_tokens": 4}


def all_next_words(q):
    """One row per word that may follow the prompt 2, 3, with the log-probability it would have been drawn with."""
    ids = torch.tensor([[2, 3, word] for word in range(SIZE)])
    answer = torch.tensor([[False, True, False]]).expand(SIZE, -1)
    log_q = torch.zeros(SIZE, 3, dtype=torch.float64)
    log_q[:, 1] = q.log()
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "target": torch.full_like(ids, UNCOUNTED),
        "answer": answer,
        "old_log_probs": log_q,
        "id": torch.arange(SIZE),
    }


@pytest.mark.parametrize("whole", [True, False])
def test_the_expected_gradient_is_that_of_the_reverse_divergence(whole):
    """sum_y q(y) grad loss(y) over all words at one prefix, in float64: no sampling, no tolerance but rounding."""
    where, method = doubled(situation(whole=whole)), SampledReverseKL(task_weight=0.0, **HOW)
    settled(method, where)
    net, other = where.student.model, where.teacher.model
    net.whole = other.whole = True
    z, w = (model(torch.tensor([[2, 3]]))[0, 1] for model in (net, other))
    (expected,) = torch.autograd.grad(reverse_kl(z[None], w[None].detach()).sum(), net.head.weight)
    q = z.detach().softmax(-1)
    net.whole = other.whole = whole
    batch = all_next_words(q)
    found = torch.zeros_like(expected)
    for word in range(SIZE):
        row = {name: value[word : word + 1] for name, value in batch.items()}
        (grad,) = torch.autograd.grad(method.loss(row).total(), net.head.weight)
        found += q[word] * grad
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_off_policy_rollouts_are_weighed_to_the_same_expectation():
    """Drawn from another distribution than the student's: the ratio q / q_old puts the expectation right."""
    where, method = doubled(situation()), SampledReverseKL(**HOW)
    settled(method, where)
    net = where.student.model
    z, w = (model(torch.tensor([[2, 3]]))[0, 1] for model in (net, where.teacher.model))
    old = torch.linspace(1, 3, SIZE, dtype=torch.float64).softmax(-1)
    expected = (z.softmax(-1) * (old.log() - w.log_softmax(-1)).detach()).sum()
    (expected,) = torch.autograd.grad(expected, net.head.weight)
    batch = all_next_words(old)
    rows = [{name: value[i : i + 1] for name, value in batch.items()} for i in range(SIZE)]
    found = sum(
        old[i] * torch.autograd.grad(method.loss(row).total(), net.head.weight)[0] for i, row in enumerate(rows)
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("micro_batch", ["auto", 3])
@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_a_training_is_the_loop_written_out(micro_batch, discount, tmp_path):
    def build():
        method = SampledReverseKL(answers=2, discount=discount, **HOW)
        return method, situation(micro_batch=micro_batch, lr=0.05)

    course = survives(build, tmp_path) if micro_batch == "auto" else finish(build)
    _, where = fresh(build)
    net, other = where.student.model, where.teacher.model
    for step, batch in enumerate(steps(where)):
        twice = {name: value.repeat_interleave(2, 0) for name, value in batch.items()}
        seeds = torch.stack([fold(seeds_for(batch["id"], 5, step), i) for i in range(2)], 1).flatten()
        found = Sampler(**HOW)(net, Words(), twice, seeds)
        ids, total, count = found["input_ids"], 0.0, 0
        log_q, log_p = (model(ids)[:, :-1].log_softmax(-1) for model in (net, other))
        log_q, log_p = (x.gather(-1, ids[:, 1:, None]).squeeze(-1) for x in (log_q, log_p.detach()))
        for i in range(len(ids)):
            at = found["answer"][i].nonzero().squeeze(1).tolist()
            reward = {t: float(log_p[i, t] - log_q[i, t].detach()) for t in at}
            for t in at:
                advantage = sum(discount ** (k - t) * reward[k] for k in at if k >= t)
                total, count = total - advantage * log_q[i, t], count + 1
        grads = torch.autograd.grad(total / count, list(net.parameters()))
        for p, grad in zip(net.parameters(), grads, strict=True):
            p.data -= 0.05 * grad
    for p, expected in zip(course.situation.student.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=1e-5)


def test_every_prompt_is_answered_several_times_and_differently():
    method = SampledReverseKL(answers=4, **HOW)
    batch = settled(method, situation())
    found = method.draw(batch)
    assert found["id"].tolist() == [i for i in range(8) for _ in range(4)]
    texts = [tuple(row) for row in found["input_ids"].tolist()]
    assert any(len(set(texts[i : i + 4])) > 1 for i in range(0, 32, 4))
    assert PAD in found["input_ids"]


def test_a_teacher_of_whom_some_log_probabilities_are_known_is_enough():
    """As from a server: two words per position, the written one always among them."""
    where, method = situation(), SampledReverseKL(**HOW)
    found = method_draws(method, where)
    whole = method.loss(found).total()
    log_p = where.teacher.model(found["input_ids"]).log_softmax(-1).detach()
    own = torch.nn.functional.pad(found["input_ids"], (0, 1))[:, 1:, None]
    ids = torch.cat([own, torch.where(own == 2, 3, 2)], -1)
    known = log_p.gather(-1, ids)
    sketch = Sketch(ids, known, (1 - known.exp().sum(-1)).log(), SIZE)
    object.__setattr__(method, "teacher", lambda batch, **_: {"logits": sketch})
    torch.testing.assert_close(method.loss(found).total(), whole)


def method_draws(method, where):
    batch = settled(method, where)
    object.__setattr__(method, "progress", Progress(seed=5))
    return method.draw(batch)


def test_a_student_that_is_its_teacher_has_no_reward():
    net = Speaks()
    where, method = situation(student=net, teacher=net), SampledReverseKL(discount=0.5, **HOW)
    loss = method.loss(method_draws(method, where)).total()
    assert abs(float(loss.detach())) < 1e-6


def test_it_runs_from_a_recipe(tmp_path):
    run = distilled({"use": "sampled-reverse-kl", "answers": 2, "max_new_tokens": 10}, tmp_path)
    assert run.result["status"] == "finished"
