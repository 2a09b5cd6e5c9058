import math

import pytest
import torch
from torch.nn import functional as F

from limbeck.losses import balance_cv, balance_kl

nan = math.nan


def gate_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_kl_as_published_and_as_the_divergence_it_is():
    gates = gate_logits(6, 4).softmax(-1)
    uniform = torch.full((4,), 0.25).double()
    published = F.kl_div(gates.mean(0).log(), uniform, reduction="batchmean")
    divergence = F.kl_div(gates.mean(0).log(), uniform, reduction="sum")
    torch.testing.assert_close(balance_kl(gates), published)
    torch.testing.assert_close(balance_kl(gates, per_expert=False), divergence)
    torch.testing.assert_close(divergence, 4 * published)


def test_both_are_zero_only_for_a_uniform_mean_gate():
    balanced = torch.eye(4).double().repeat(3, 1)  # every sample is decided, the batch is balanced
    assert balance_kl(balanced).item() == 0
    assert balance_cv(balanced).item() == 0
    assert balance_kl(balanced[:11]).item() > 1e-4
    assert balance_cv(balanced[:11]).item() > 1e-2


def test_log_space_agrees_with_probabilities_and_outlives_them():
    scores = gate_logits(6, 4)
    torch.testing.assert_close(balance_kl(scores, logits=True), balance_kl(scores.softmax(-1)))
    far = torch.tensor([[1000.0, 0.0]] * 3, requires_grad=True)  # softmax gives (1, 0) exactly
    value = balance_kl(far, logits=True, per_expert=False)
    assert value.item() == pytest.approx(500 - math.log(2))  # (log(1/2) + (log(1/2) + 1000)) / 2
    (gradient,) = torch.autograd.grad(value, far)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 6, -1 / 6]] * 3))


def test_a_dead_expert_gives_no_infinity():
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    value = balance_kl(gates)
    assert value.isfinite()
    assert torch.autograd.grad(value, gates)[0].isfinite().all()


def test_cv_by_hand():
    # importance (3, 1): mean 2, unbiased standard deviation sqrt(2)
    gates = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    assert balance_cv(gates).item() == pytest.approx(math.sqrt(2) / 2)
    one_takes_all = F.one_hot(torch.zeros(5, dtype=torch.int64), 4).float()
    assert balance_cv(one_takes_all).item() == pytest.approx(math.sqrt(4))


def test_gradients_in_float64_and_at_balance():
    scores = gate_logits(5, 3).requires_grad_()
    for loss in (balance_kl, balance_cv):
        assert torch.autograd.gradcheck(lambda x, f=loss: f(x.softmax(-1)), (scores,))
    assert torch.autograd.gradcheck(lambda x: balance_kl(x, logits=True), (scores,))
    level = torch.full((4, 3), 1 / 3, requires_grad=True)
    for loss in (balance_kl, balance_cv):
        assert torch.autograd.grad(loss(level), level)[0].isfinite().all()  # the root of cv has a corner there


@pytest.mark.parametrize("loss", [balance_kl, balance_cv])
def test_masked_samples_do_not_exist(loss):
    gates = gate_logits(5, 3).softmax(-1)
    mask = torch.tensor([True, False, True, True, False])
    broken = gates.masked_fill(~mask[:, None], nan).requires_grad_()
    value = loss(broken, mask=mask)
    torch.testing.assert_close(value, loss(gates[mask]))
    assert torch.autograd.grad(value, broken)[0][~mask].eq(0).all()
    nothing = loss(broken, mask=torch.zeros(5, dtype=torch.bool))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, broken)[0].eq(0).all()


def test_one_expert_is_balanced():
    gates = torch.ones(4, 1)
    assert balance_kl(gates).item() == 0
    assert balance_cv(gates).item() == 0


def test_half_precision_is_computed_in_fp32():
    gates = gate_logits(300, 4).softmax(-1).bfloat16()
    for loss in (balance_kl, balance_cv):
        assert loss(gates).dtype == torch.float32
        assert torch.equal(loss(gates), loss(gates.float()))


def test_it_needs_the_whole_batch():
    gates = torch.eye(2).double()
    pieces = sum(balance_kl(row[None]) for row in gates) / 2
    assert balance_kl(gates).item() == 0
    assert pieces > 1  # so pieces must never be averaged
