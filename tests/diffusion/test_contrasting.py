"""Contrast with one's own past: MoCo v3 by hand, the order of a batch, who learns, who follows, who keeps no graph."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.diffusion.contrasting import Sides, contrast


def vectors(count=5, seed=0):
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(count=5):
    return {name: vectors(count, seed) for seed, name in enumerate(("ask0", "answer0", "ask1", "answer1"))}


@pytest.mark.parametrize("rescaled", [False, True])
def test_it_is_the_loss_of_moco_v3(rescaled):
    """Two times 2 tau CE(q k / tau, diagonal), with vectors of length one; without the factor where that is not asked for."""
    given_, tau = views(), 0.3
    expected = 0.0
    for n in (0, 1):
        logits = F.normalize(given_[f"ask{n}"]) @ F.normalize(given_[f"answer{n}"]).T / tau
        expected = expected + F.cross_entropy(logits, torch.arange(5), reduction="none") * (2 * tau if rescaled else 1)
    torch.testing.assert_close(contrast(tau, rescaled, **given_), expected)


def test_one_side_is_half_of_it():
    given_ = views()
    halves = [contrast(ask0=given_[f"ask{n}"], answer0=given_[f"answer{n}"]) for n in (0, 1)]
    torch.testing.assert_close(sum(halves), contrast(**given_))


def logits(ask, answer, tau=0.2):
    """Row i: the logarithms of who is taken for i's answer. The candidates' order does not matter, so shifting them shows each."""
    shifted = torch.stack([-contrast(tau, ask0=ask, answer0=answer.roll(-s, 0)) for s in range(len(ask))], 1)
    places = (torch.arange(len(ask))[:, None] + torch.arange(len(ask))) % len(ask)
    return torch.empty_like(shifted).scatter_(1, places, shifted)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(5)))
def test_permuting_a_batch_permutes_its_logits(order):
    ask, answer = vectors(), vectors(seed=1)
    plain = logits(ask, answer)
    cosines = F.cosine_similarity(ask[:, None], answer[None], dim=-1)
    torch.testing.assert_close(plain, (cosines / 0.2).log_softmax(1))
    torch.testing.assert_close(logits(ask[order], answer[order]), plain[order][:, order])


@given(count=st.integers(1, 6), tau=st.floats(0.05, 3))
def test_where_all_are_alike_nothing_is_known(count, tau):
    same = {name: torch.ones(count, 4) for name in views()}
    torch.testing.assert_close(contrast(tau, **same), torch.full((count,), 2 * math.log(count)), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_formula():
    given_ = views(3)
    names = [n for n in given_ if n.startswith("ask")]
    args = tuple(given_[n].requires_grad_() for n in names)
    answers = {n: v for n, v in given_.items() if n not in names}
    assert torch.autograd.gradcheck(lambda *a: contrast(0.5, True, **dict(zip(names, a)), **answers), args)


def test_who_answers_begins_as_who_asks_follows_and_keeps_no_graph():
    torch.manual_seed(0)
    sides, p = Sides(6, 8).double(), torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(sides.answers(p), sides.query(p).detach())
    assert not sides.answers(p).requires_grad
    (sides.asks(p) * sides.answers(p)).sum().backward()
    assert all(q.grad is None for q in sides.key.parameters())
    learns = {id(q) for module in sides.learns() for q in module.parameters()}
    assert {id(q) for q in sides.parameters() if q.grad is not None} == learns
    before = [q.clone() for q in sides.key.parameters()]
    with torch.no_grad():
        for q in sides.query.parameters():
            q.add_(1.0)
    sides.follow(0.75)
    for now, then, ours in zip(sides.key.parameters(), before, sides.query.parameters()):
        torch.testing.assert_close(now, 0.75 * then + 0.25 * ours)


def test_a_vector_does_not_depend_on_its_neighbours():
    sides, p = Sides(6, 8), torch.randn(4, 6)
    for made in (sides.asks, sides.answers):
        torch.testing.assert_close(made(p)[1:2], made(p[1:2]))
    assert sides.bfloat16().asks(p).dtype == torch.bfloat16
