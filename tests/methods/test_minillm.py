"""MiniLLM: its gradients by enumeration, returns and whitening written out, the loop with inner epochs, a corpus."""

import pytest
import torch
from harness import finish, fresh, steps, survives
from writers import SIZE, Words, distilled, doubled, rows, settled, situation, talk

from limbeck.engine.course import settle
from limbeck.errors import RecipeError
from limbeck.language.prompts import UNCOUNTED
from limbeck.language.rollouts import Sampler
from limbeck.losses import reverse_kl
from limbeck.method import Progress
from limbeck.methods.minillm import MiniLLM
from limbeck.randomness import fold, seeds_for

HOW = {"max_new_tokens": 4}
BARE = {"mixture": 0.0, "discount": 0.0, "whiten": False, "reward_scale": 1.0, "reward_clip": 1e9, "returns": "all"}


def one_word(method, where, word, log_old):
    """The batch after the prompt 2, 3 when `word` was written, as `draw` would make it."""
    ids = torch.tensor([[2, 3, word]])
    answer = torch.tensor([[False, True, False]])
    z, w = (actor.model(ids)[0, 1].detach().log_softmax(-1)[word] for actor in (where.student, where.teacher))
    reward = torch.zeros(1, 3, dtype=torch.float64)
    reward[0, 1] = w - z
    old = torch.zeros(1, 3, dtype=torch.float64)
    old[0, 1] = log_old
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "target": torch.full_like(ids, UNCOUNTED),
        "answer": answer,
        "old_log_probs": old,
        "advantage": method.advantage(reward, answer),
        "id": torch.tensor([word]),
    }


def test_without_mixture_and_future_the_expected_gradient_is_that_of_the_reverse_divergence():
    where, method = doubled(situation()), MiniLLM(exact_weight=0.0, **BARE, **HOW)
    settled(method, where)
    net = where.student.model
    z, w = (actor.model(torch.tensor([[2, 3]]))[0, 1] for actor in (where.student, where.teacher))
    (expected,) = torch.autograd.grad(reverse_kl(z[None], w[None].detach()).sum(), net.head.weight)
    log_q, found = z.detach().log_softmax(-1), torch.zeros_like(expected)
    for word in range(SIZE):
        loss = method.loss(one_word(method, where, word, log_q[word])).total()
        found += log_q[word].exp() * torch.autograd.grad(loss, net.head.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_the_mixture_is_weighed_away():
    """Drawn from 0.8 q + 0.2 p and weighed by q over it: the same expectation. No clip, so that it is exact."""
    where, method = doubled(situation()), MiniLLM(exact_weight=0.0, **(BARE | {"mixture": 0.2}), **HOW)
    object.__setattr__(method, "clip", 1e9)
    settled(method, where)
    net = where.student.model
    z, w = (actor.model(torch.tensor([[2, 3]]))[0, 1] for actor in (where.student, where.teacher))
    (expected,) = torch.autograd.grad(reverse_kl(z[None], w[None].detach()).sum(), net.head.weight)
    drawn, found = 0.8 * z.detach().softmax(-1) + 0.2 * w.detach().softmax(-1), torch.zeros_like(expected)
    for word in range(SIZE):
        loss = method.loss(one_word(method, where, word, drawn[word].log())).total()
        found += drawn[word] * torch.autograd.grad(loss, net.head.weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("discount", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("returns", ["following", "all"])
def test_returns_are_means_over_what_follows(discount, returns):
    method = MiniLLM(discount=discount, returns=returns)
    g = torch.Generator().manual_seed(0)
    reward = torch.randn(3, 7, generator=g, dtype=torch.float64)
    answer = torch.zeros(3, 7, dtype=torch.bool)
    answer[0, 2:6] = answer[1, 4:5] = True
    found = method.advantage(reward.where(answer, 0), answer)
    for i in range(3):
        for t in range(7):
            first = t + (returns == "following")
            later = [k for k in range(first, 7) if answer[i, k]] if answer[i, t] else []
            expected = sum(discount ** (k - first) * reward[i, k] for k in later) / max(len(later), 1)
            assert float(found[i, t]) == pytest.approx(float(expected), abs=1e-12)


def test_whitening_is_over_the_written_tokens_alone():
    method, g = MiniLLM(), torch.Generator().manual_seed(1)
    values, answer = torch.randn(4, 6, generator=g) * 3 + 2, torch.rand(4, 6, generator=g) < 0.5
    found = method.whitened(values.masked_fill(~answer, 1e6), answer)
    kept = values[answer]
    torch.testing.assert_close(found[answer], (kept - kept.mean()) / kept.std())
    assert not found[~answer].any()
    one = torch.zeros(4, 6, dtype=torch.bool)
    one[2, 3] = True
    assert not method.whitened(values, one).any()
    assert not method.whitened(values, torch.zeros_like(one)).any()


def test_rewards_are_scaled_and_clipped():
    where = situation()
    method = MiniLLM(reward_scale=0.01, reward_clip=2.0, returns="all", discount=0.0, whiten=False, **HOW)
    batch = settled(method, where)
    found = method.draw(batch)
    one_step = found["advantage"] * found["answer"].flip(1).cumsum(1).flip(1)
    assert float(one_step.abs().max()) == pytest.approx(2.0)


@pytest.mark.parametrize("micro_batch", ["auto", 3])
def test_a_training_is_the_loop_of_the_paper(micro_batch, tmp_path):
    """Two updates on each set of texts; at the second the ratio is no longer one, and clipped where it must be."""

    def build():
        return MiniLLM(inner_epochs=2, **HOW), situation(micro_batch=micro_batch, lr=0.05)

    course = survives(build, tmp_path) if micro_batch == "auto" else finish(build)
    _, where = fresh(build)
    net, other = where.student.model, where.teacher.model
    for step, batch in enumerate(steps(where)):
        seeds = fold(seeds_for(batch["id"], 5, step), 0)
        found = Sampler(teacher_share=0.2, **HOW)(net, Words(), batch, seeds, teacher=other)
        ids, answer = found["input_ids"], found["answer"]

        def said(model, ids=ids):
            log_p = model(ids)[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
            return torch.nn.functional.pad(log_p, (0, 1))

        old_q, log_p = said(net).detach(), said(other).detach()
        reward = ((log_p - old_q) / 0.5).clamp(-100, 100)
        advantage = torch.zeros_like(reward)
        for i in range(len(ids)):
            at = answer[i].nonzero().squeeze(1).tolist()
            for t in at[:-1]:
                later = [k for k in at if k > t]
                advantage[i, t] = sum(0.95 ** (k - t - 1) * reward[i, k] for k in later) / len(later)
        kept = advantage[answer]
        advantage = (advantage - kept.mean()) / (kept.std() + 1e-8)
        drawn = (0.8 * old_q.exp() + 0.2 * log_p.exp()).log()
        for _ in range(2):
            rho = (said(net) - drawn).exp()
            policy = torch.maximum(-advantage * rho, -advantage * rho.clamp(0.8, 1.2))[answer].mean()
            exact = reverse_kl(net(ids), other(ids).detach())[answer].mean()
            for p, grad in zip(
                net.parameters(), torch.autograd.grad(policy + exact, list(net.parameters())), strict=True
            ):
                p.data -= 0.05 * grad
    for p, expected in zip(course.situation.student.model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-3, atol=2e-5)


def test_a_corpus_keeps_the_student_near_to_plain_text():
    data = talk(corpus=rows(9, 900, 3))
    where, method = situation(data=data), MiniLLM(corpus="corpus", corpus_weight=2.0, **HOW)
    batch = settled(method, where)
    object.__setattr__(method, "progress", Progress(seed=5))
    drawn = method.draw(batch)
    assert set(drawn["corpus_id"].tolist()) <= set(range(900, 909))
    loss = method.loss(drawn)
    text = {n.removeprefix("corpus_"): v for n, v in drawn.items() if n.startswith("corpus_")}
    z, w = where.student.model(text["input_ids"]), where.teacher.model(text["input_ids"])
    answer = text["answer"]
    log_q, p = z.log_softmax(-1)[answer], w.softmax(-1)[answer]
    expected = -log_q.gather(-1, text["target"][answer][:, None]).mean() + (p * (p.log() - log_q)).sum(-1).mean()
    with_it, names = loss.total(), [n for n in loss.parts if n.startswith("corpus.")]
    without = sum(part.weight * part.sum / part.count for n, part in loss.parts.items() if n not in names)
    torch.testing.assert_close(with_it - without, 2.0 * 0.5 * expected)
    with pytest.raises(RecipeError, match=r"names the split 'korpus'. Did you mean 'corpus'"):
        settle(MiniLLM(corpus="korpus"), situation(data=data))


def test_with_a_corpus_it_survives(tmp_path):
    survives(
        lambda: (MiniLLM(corpus="corpus", inner_epochs=1, **HOW), situation(data=talk(corpus=rows(9, 900, 3)))),
        tmp_path,
    )


def test_it_runs_from_a_recipe(tmp_path):
    run = distilled({"use": "minillm", "inner_epochs": 2, "max_new_tokens": 10}, tmp_path)
    assert run.result["status"] == "finished"
