"""Three levels of comparison: written out, which half counts, what a mask that only scales does, gradients, edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.losses import find, kl
from limbeck.losses.levels import kl_at, less_sure_half, relation_of_classes, relation_of_samples, unsure_kl
from limbeck.losses.standardise import standardised_kl

TEMPERATURES = (4.0, 3.0, 0.5)
LEVELS = [unsure_kl, relation_of_classes, relation_of_samples]


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_recipes_know_them_by_name():
    assert [find(f.__name__.replace("_", "-")) for f in (kl_at, *LEVELS)] == [kl_at, *LEVELS]


def test_the_less_sure_half():
    assert less_sure_half(torch.tensor([0.9, 0.2, 0.5])).tolist() == [False, True, True]  # the median itself counts
    assert less_sure_half(torch.tensor([0.9, 0.2, 0.5, 0.6])).tolist() == [False, True, True, False]
    assert less_sure_half(torch.tensor([0.7, 0.7, 0.7])).tolist() == [True, True, True]
    assert less_sure_half(torch.tensor([0.7])).tolist() == [True]
    assert less_sure_half(torch.tensor([])).tolist() == []


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9))
def test_at_least_half_counts_and_nobody_surer_than_who_does_not(confidence):
    chosen = less_sure_half(torch.tensor(confidence))
    assert chosen.sum() >= len(confidence) / 2
    inside = [c for c, kept in zip(confidence, chosen.tolist()) if kept]
    outside = [c for c, kept in zip(confidence, chosen.tolist()) if not kept]
    assert not outside or max(inside) < min(outside)


def test_a_sum_over_temperatures():
    s, t = logits(5, 4), logits(5, 4, seed=1)
    torch.testing.assert_close(
        kl_at(s, t, temperatures=TEMPERATURES), sum(kl(s, t, temperature=T) for T in TEMPERATURES)
    )
    standard = sum(standardised_kl(s, t, temperature=T) for T in TEMPERATURES)
    torch.testing.assert_close(kl_at(s, t, temperatures=TEMPERATURES, standardise=True), standard)


def test_samples_that_the_teacher_is_sure_of_are_set_aside():
    s, t = logits(5, 4), logits(5, 4, seed=1)
    sureness = t.softmax(1).amax(1)
    unsure = sureness <= sureness.median()
    assert unsure.sum() == 3
    value, every = (f(s, t, temperatures=TEMPERATURES) for f in (unsure_kl, kl_at))
    torch.testing.assert_close(value, (every * unsure).mean())
    scaled = unsure_kl(s, t, temperatures=TEMPERATURES, select=False)
    torch.testing.assert_close(scaled, every.mean() * 0.6)


@pytest.mark.parametrize("select", [True, False])
def test_relations_are_differences_of_gram_matrices_entry_by_entry(select):
    s, t = logits(4, 6), logits(4, 6, seed=1)
    sureness, given_to = t.softmax(1).amax(1), t.softmax(1).sum(0)
    samples, classes = sureness <= sureness.quantile(0.5), given_to <= given_to.quantile(0.5)
    assert (samples.sum(), classes.sum()) == (2, 3)
    between_samples = between_classes = 0.0
    for T in TEMPERATURES:
        a, b = (s / T).softmax(1), (t / T).softmax(1)
        for i in range(4):
            for j in range(4):
                part = float((a[i] @ a[j] - b[i] @ b[j]) ** 2) / 4
                between_samples += part * (bool(samples[j]) if select else 0.5)
        for i in range(6):
            for j in range(6):
                part = float((a[:, i] @ a[:, j] - b[:, i] @ b[:, j]) ** 2) / 6
                between_classes += part * (bool(classes[j]) if select else 0.5)
    found = [f(s, t, temperatures=TEMPERATURES, select=select).item() for f in LEVELS[1:]]
    assert found == pytest.approx([between_classes, between_samples])


@pytest.mark.parametrize("loss", LEVELS)
def test_equal_predictions_have_nothing_to_say_and_their_order_changes_nothing(loss):
    s, t = logits(5, 4).requires_grad_(), logits(5, 4, seed=1)
    value = loss(s, s.detach().clone(), temperatures=TEMPERATURES)
    assert not value.any()
    assert torch.autograd.grad(value.sum(), s)[0].abs().max() < 1e-14
    rows, columns = torch.randperm(5), torch.randperm(4)
    shuffled = loss(s[rows][:, columns], t[rows][:, columns], temperatures=TEMPERATURES)
    torch.testing.assert_close(shuffled.sum(), loss(s, t, temperatures=TEMPERATURES).sum())


@pytest.mark.parametrize("loss", LEVELS)
@pytest.mark.parametrize("select", [True, False])
def test_gradients_flow_into_both_arguments_and_are_right(loss, select):
    s, t = logits(4, 3).requires_grad_(), logits(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, temperatures=(2.0, 0.7), select=select), (s, t))


@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
@settings(max_examples=30)
def test_small_batches_and_half_precision(samples, classes, dtype):
    s = (10 * logits(samples, classes)).to(dtype).requires_grad_()
    for loss in LEVELS:
        value = loss(s, s.detach().flip(0, 1), temperatures=(0.1, 5.0))
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3)
    for loss in LEVELS:
        with pytest.raises(RecipeError, match="temperature 0: needed is a number above 0"):
            loss(x, x, temperatures=(1.0, 0))
        with pytest.raises(RecipeError, match=r"\[2, 3\], the teacher's \[2, 4\]"):
            loss(x, torch.zeros(2, 4), temperatures=(1.0,))


def test_gram_matrices_stay_in_single_precision_under_autocast():
    s, t = logits(6, 5).float(), logits(6, 5, seed=1).float()
    for loss in LEVELS[1:]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(s, t, temperatures=TEMPERATURES)
        assert torch.equal(found, loss(s, t, temperatures=TEMPERATURES))


@pytest.mark.parametrize("select", [True, False])
def test_masked_samples_are_as_if_they_were_not_there(select):
    s, t = logits(6, 4), logits(6, 4, seed=1)
    mask = torch.tensor([True, False, True, True, False, True])
    bad_s, bad_t = (torch.where(mask[:, None], x, torch.nan).requires_grad_() for x in (s, t))
    for loss in LEVELS:
        value = loss(bad_s, bad_t, temperatures=TEMPERATURES, select=select, mask=mask)
        torch.testing.assert_close(value, loss(s[mask], t[mask], temperatures=TEMPERATURES, select=select))
        gradient = torch.autograd.grad(value, bad_s)[0]
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()
        nothing = loss(bad_s, bad_t, temperatures=TEMPERATURES, select=select, mask=torch.zeros_like(mask))
        assert nothing.item() == 0.0
    values = kl_at(bad_s, bad_t, temperatures=TEMPERATURES, mask=mask)
    torch.testing.assert_close(values[mask], kl_at(s[mask], t[mask], temperatures=TEMPERATURES))
    assert not values[~mask].any()
