"""Labels that a student makes for itself: Zipf's law by rank, and weights whose mean is one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from limbeck.losses.selfteaching import confident_cross_entropy, rank_scores, zipf_labels


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(classes=st.integers(2, 9), seed=st.integers(0, 50))
def test_zipf_labels_are_reciprocal_ranks_without_the_labels_own(classes, seed):
    scores = numbers(4, classes, seed=seed)
    target = torch.randint(0, classes, (4,), generator=torch.Generator().manual_seed(seed))
    found = zipf_labels(scores, target)
    for row, y, masses in zip(scores.tolist(), target.tolist(), found.tolist()):
        order = sorted(range(classes), key=lambda c: -row[c])
        mass = {c: 1 / (rank + 1) for rank, c in enumerate(order) if c != y}
        for c in range(classes):
            assert masses[c] == pytest.approx(mass.get(c, 0.0) / sum(mass.values()), rel=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_zipf_by_hand():
    found = zipf_labels(torch.tensor([[3.0, 9.0, 1.0, 5.0]]), torch.tensor([3]))  # ranks 3, 1, 4, (2)
    total = 1 / 3 + 1 + 1 / 4
    torch.testing.assert_close(found, torch.tensor([[1 / 3, 1.0, 1 / 4, 0.0]]) / total)


def test_only_the_order_of_the_scores_matters_and_ties_are_settled():
    scores, target = numbers(5, 6), torch.tensor([0, 1, 2, 3, 4])
    assert torch.equal(zipf_labels(scores.exp() * 3, target), zipf_labels(scores, target))
    tied = zipf_labels(torch.zeros(1, 4), torch.tensor([1]))
    torch.testing.assert_close(tied[0, [0, 2, 3]], torch.tensor([1, 1 / 3, 1 / 4]) / (1 + 1 / 3 + 1 / 4))


def test_the_weights_of_the_target_have_mean_one_and_follow_the_confidence():
    logits, target = 2 * numbers(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    p = logits.softmax(-1)[torch.arange(7), target]
    weights = confident_cross_entropy(logits, target) / -p.log()
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0).double())
    torch.testing.assert_close(weights, 1 + p**2 - (p**2).mean())


def test_the_gradient_of_the_target_part_treats_the_weight_as_a_number():
    logits, target = (2 * numbers(5, 4)).requires_grad_(), torch.tensor([0, 1, 2, 3, 0])
    (found,) = torch.autograd.grad(confident_cross_entropy(logits, target).sum(), logits)
    p = logits.detach().softmax(-1)
    right = p[torch.arange(5), target]
    weight = 1 + right**2 - (right**2).mean()
    torch.testing.assert_close(found, weight[:, None] * (p - F.one_hot(target, 4)))


def test_equally_sure_samples_have_the_plain_cross_entropy():
    logits, target = torch.tensor([[2.0, 0.0, 0.0]]).expand(4, 3), torch.zeros(4, dtype=torch.int64)
    torch.testing.assert_close(
        confident_cross_entropy(logits, target), F.cross_entropy(logits, target, reduction="none")
    )
    assert confident_cross_entropy(torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)).item() == 0


def test_masked_samples_are_out_of_the_mean_too():
    logits, target = numbers(5, 4), torch.tensor([0, 1, 2, 3, 0])
    mask = torch.tensor([True, False, True, True, False])
    broken = logits.masked_fill(~mask[:, None], math.nan).requires_grad_()
    values = confident_cross_entropy(broken, target, mask=mask)
    torch.testing.assert_close(values, confident_cross_entropy(logits[mask], target[mask]))
    assert torch.autograd.grad(values.sum(), broken)[0][~mask].abs().max() == 0


@pytest.mark.parametrize("mode", ["prob", "code"])
def test_rank_scores_are_their_formula(mode):
    weak, student, target = numbers(3, 4).requires_grad_(), numbers(3, 4, seed=1), torch.tensor([2, 0, 3])
    found = rank_scores(weak, student, target, mode=mode)
    w, s = weak.softmax(-1), student.log_softmax(-1) if mode == "code" else student.softmax(-1)
    for b in range(3):
        for c in range(4):
            y = int(target[b])
            expected = w[b, c] / (1 - w[b, y] + 1e-6) + s[b, c] / (1 - s[b, y] + 1e-6)
            torch.testing.assert_close(found[b, c], expected.detach())
    assert not found.requires_grad


def test_rank_scores_of_a_sure_student_are_finite_in_half_precision():
    sure = torch.tensor([[60.0, 0.0, -60.0]], dtype=torch.float16)
    for mode in ("prob", "code"):
        assert rank_scores(sure, sure, torch.tensor([0]), mode=mode).isfinite().all()
