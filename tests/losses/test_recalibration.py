"""Few numbers of a teacher: taken in pieces or at once, made fewer, to the power 1 / c, smoothed; nothing is lost on the way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import sketched
from limbeck.losses.sketched import recalibration
from limbeck.losses.sketched.recalibration import among_the_known, as_released, narrowed, smoothed, tempered, top
from limbeck.losses.token_divergences import top_k_kl
from limbeck.signals import Projection
from limbeck.sketches import Sketch


def logits(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_top_is_that_of_the_whole_and_what_does_not_count_is_unknown(rows, k, seed):
    z = logits(rows, 6, seed)
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.7
    found, whole = top(z.where(mask[:, None], math.nan), mask, k), Sketch.top(z, k)
    assert found.shape == (rows, 6)
    for name in ("ids", "log_probs", "log_tail"):
        assert torch.equal(getattr(found, name)[mask], getattr(whole, name)[mask])
    assert not found.known[~mask].any()


def test_of_a_projection_a_piece_at_a_time(monkeypatch):
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((2, 5, 3), (8, 3)))
    made, mask = Projection(hidden, weight, scale=2.0), torch.arange(10).view(2, 5) % 3 != 1
    monkeypatch.setattr(recalibration, "_ROOM", 16)  # two tokens
    found, whole = top(made, mask, 3, classes=7), Sketch.top(made.materialise()[..., :7], 3)
    assert found.classes == 7
    assert torch.equal(found.ids[mask], whole.ids[mask])
    torch.testing.assert_close(found.log_probs[mask], whole.log_probs[mask])
    torch.testing.assert_close(found.log_tail[mask], whole.log_tail[mask])
    assert not top(made, mask & False, 3).known.any()


def test_fewer_of_a_sketch_are_those_of_the_whole():
    z = logits(4, 8)
    stored = Sketch.top(z, 6)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    stored = Sketch(stored.ids[:, shuffled], stored.log_probs[:, shuffled], stored.log_tail, 8)
    found, whole = narrowed(stored, 2), Sketch.top(z, 2)
    assert torch.equal(found.ids, whole.ids)
    torch.testing.assert_close(found.log_probs, whole.log_probs)
    torch.testing.assert_close(found.log_tail, whole.log_tail)
    assert torch.equal(narrowed(stored, 9).ids, stored.ids)
    with pytest.raises(RecipeError, match="drawn at random"):
        narrowed(Sketch.drawn(z, 4, torch.zeros(4)), 2)


@given(st.floats(0.2, 8), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_tempering_keeps_the_order_and_the_mass(c, k, seed):
    sketch = Sketch.top(logits(3, 6, seed), k)
    found = tempered(sketch, c)
    torch.testing.assert_close(found.total(), torch.ones(3, dtype=torch.float64))
    both = torch.cat([sketch.log_probs, sketch.log_tail[:, None]], -1)
    torch.testing.assert_close(
        torch.cat([found.log_probs, found.log_tail[:, None]], -1), (both / c).log_softmax(-1), equal_nan=True
    )
    assert bool((found.log_probs.diff(dim=-1) <= 0).all())
    same = tempered(sketch, 1.0)
    torch.testing.assert_close(same.log_probs, sketch.log_probs)
    if k == 6:  # of all classes it is the softmax at this temperature
        expected = (logits(3, 6, seed) / c).log_softmax(-1)
        torch.testing.assert_close(found.expand(), expected)


def test_smoothing_by_hand():
    p = torch.tensor([[0.6, 0.2, 0.1], [0.4, 0.35, 0.05], [0.5, 0.0, 0.0]], dtype=torch.float64)
    sketch = Sketch(torch.arange(3).expand(3, 3), p.log(), (1 - p.sum(1)).log(), 9)
    found = smoothed(sketch, 0.1)
    # the second: 0.4 - m = 0.35 + m / 2 at m = 1/30, so no more is moved; the third has nobody to give to
    expected = [[0.5, 0.25, 0.15], [0.4 - 1 / 30, 0.35 + 1 / 60, 0.05 + 1 / 60], [0.5, 0.0, 0.0]]
    torch.testing.assert_close(found.log_probs.exp(), torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(found.log_tail, sketch.log_tail)
    alone = Sketch.top(logits(2, 4), 1)
    torch.testing.assert_close(smoothed(alone, 0.1).log_probs, alone.log_probs)


@given(st.integers(1, 6), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_smoothing_keeps_the_first_and_the_mass_whatever_the_order_in_a_store(k, seed):
    sketch = Sketch.top(logits(4, 6, seed), k)
    turned = Sketch(sketch.ids.flip(-1), sketch.log_probs.flip(-1), sketch.log_tail, 6)
    found = smoothed(turned, 0.3)
    torch.testing.assert_close(found.total(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(found.log_probs, smoothed(sketch, 0.3).log_probs)
    assert bool((found.log_probs[:, :1] >= found.log_probs - 1e-12).all())
    assert torch.equal(found.ids[:, 0], sketch.ids[:, 0])


def test_losses_on_buckets_are_the_plain_ones():
    z, w = logits(3, 7, 1).requires_grad_(), logits(3, 7, 2)
    sketch = Sketch.top(w, 3)
    found = sketched.compare(among_the_known, z, sketch, tail="drop")
    expected = top_k_kl(z, w, k=3, renormalise_student=True)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found.sum(), z), torch.autograd.grad(expected.sum(), z)):
        torch.testing.assert_close(ours, theirs)
    q, p = z.softmax(-1), w.softmax(-1)
    six = [torch.cat([x.gather(1, sketch.ids), 1 - x.gather(1, sketch.ids).sum(1, keepdim=True)], 1) for x in (q, p)]
    released = torch.nn.functional.kl_div(six[0], six[1], log_target=True, reduction="none").sum(1)
    least = (six[1].exp() * six[1]).sum(1) - six[1].exp().amax(1)
    found = sketched.compare(as_released, z, sketch)
    torch.testing.assert_close(found, released - least)
    assert bool((found >= 0).all())
    torch.testing.assert_close(torch.autograd.grad(found.sum(), z), torch.autograd.grad(released.sum(), z))
