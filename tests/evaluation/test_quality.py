"""Quality figures against closed forms worked out by hand, their limits and their invariances."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.evaluation import quality

# predictions 0, 0, 1, 2 against targets 0, 1, 1, 1
LOGITS = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
TARGET = torch.tensor([0, 1, 1, 1])


def test_classification_closed_forms():
    found = quality.figures("classification", LOGITS, TARGET)
    assert found["accuracy"] == 0.5
    # class 0: precision 1/2, recall 1, F1 2/3, share 1/4; class 1: precision 1, recall 1/3, F1 1/2, share 3/4
    assert found["f1_weighted"] == pytest.approx(2 / 3 / 4 + 3 / 4 / 2, abs=1e-15)
    assert found["mean_class_accuracy"] == pytest.approx((1 + 1 / 3) / 2, abs=1e-15)
    chance = (1 / 4) * (2 / 4) + (3 / 4) * (1 / 4)
    assert found["kappa"] == pytest.approx((0.5 - chance) / (1 - chance), abs=1e-15)
    e = math.exp(2)
    assert found["nll"] == pytest.approx((2 * -math.log(e / (e + 2)) + 2 * -math.log(1 / (e + 2))) / 4, abs=1e-12)


def test_perfect_and_constant_answers():
    target = torch.tensor([0, 1, 2, 2])
    perfect = torch.nn.functional.one_hot(target).double() * 1e4
    assert quality.figures("classification", perfect, target) == {
        "accuracy": 1.0, "f1_weighted": 1.0, "mean_class_accuracy": 1.0, "kappa": 1.0, "nll": 0.0,
    }  # fmt: skip
    constant = torch.tensor([[1.0, 0, 0]]).repeat(4, 1)
    assert quality.kappa(constant, target) == 0.0
    assert math.isnan(quality.kappa(constant, torch.zeros(4, dtype=torch.int64)))


def test_uniform_logits_cost_the_logarithm_of_the_classes():
    target = torch.arange(7)
    assert quality.nll(torch.full((7, 7), 3.0), target) == pytest.approx(math.log(7), abs=1e-15)
    assert quality.nll(torch.full((7, 7), 3.0, dtype=torch.bfloat16), target) == pytest.approx(math.log(7), abs=1e-15)


@given(st.integers(1, 30), st.integers(2, 6), st.integers(0, 10**6))
def test_order_of_samples_and_shift_of_logits_change_nothing(samples, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (samples,), generator=generator)
    order = torch.randperm(samples, generator=generator)
    for measure in quality.FIGURES["classification"].values():
        before = measure(logits, target)
        assert measure(logits[order] + 5.0, target[order]) == pytest.approx(before, abs=1e-9, nan_ok=True)


def test_mean_class_accuracy_does_not_see_how_often_a_class_occurs():
    weights = torch.tensor([1, 3, 3, 3])
    often = LOGITS.repeat_interleave(weights, 0), TARGET.repeat_interleave(weights)
    assert quality.mean_class_accuracy(*often) == pytest.approx(quality.mean_class_accuracy(LOGITS, TARGET))


def test_multilabel_closed_forms():
    logits = torch.tensor([[1.0, -1, 3], [1, 1, -1], [-1, -2, -1]])
    target = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 0]])
    found = quality.figures("multilabel", logits, target)
    # right and found: 3; predicted: 4; present: 4
    assert found["f1_micro"] == pytest.approx(2 * 3 / (4 + 4))
    assert found["f1_macro"] == pytest.approx((2 * 2 / (2 + 3) + 1 + 0) / 3)
    assert found["map"] == 1.0  # the third label never occurs and is left out
    assert found["exact_match"] == pytest.approx(1 / 3)
    losses = torch.log1p(torch.exp(-logits * (2 * target - 1)))
    assert found["nll"] == pytest.approx(losses.double().mean().item(), abs=1e-7)
    assert math.isnan(quality.mean_average_precision(logits, torch.zeros(3, 3)))


def test_regression_closed_forms():
    found = quality.figures("regression", torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert found["mse"] == 3.0
    assert found["rmse"] == pytest.approx(math.sqrt(3))
    assert found["mae"] == 1.0
    assert found["r2"] == pytest.approx(1 - 9 / 2)
    # deviations (-2, -1, 3) and (-1, 0, 1): 5 / sqrt(14 * 2)
    assert found["pearson"] == pytest.approx(5 / math.sqrt(28), abs=1e-12)
    assert found["spearman"] == pytest.approx(1.0, abs=1e-12)


def test_regression_limits():
    target = torch.tensor([1.0, 4.0, 2.0])
    assert quality.r2(target, target) == 1.0
    assert quality.r2(target.mean().expand(3), target) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(quality.r2(target, torch.ones(3)))
    assert math.isnan(quality.pearson(torch.ones(3), target))
    assert math.isnan(quality.spearman(torch.ones(1), torch.ones(1)))
    two = torch.stack([target, -target], 1)
    assert quality.pearson(torch.stack([target, target], 1), two) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(RecipeError, match="one shape"):
        quality.mse(torch.ones(3, 2), torch.ones(3))


def test_miou_counts_over_all_pixels_and_leaves_out_the_ignored():
    target = torch.tensor([[[0, 0, 1, 255]], [[1, 1, 255, 255]]])
    predicted = torch.tensor([[[0, 1, 1, 2]], [[1, 1, 0, 2]]])
    logits = torch.nn.functional.one_hot(predicted, 4).permute(0, 3, 1, 2).float()
    # class 0: 1 of 2; class 1: 3 of 4; class 2 only on ignored pixels, class 3 nowhere
    assert quality.miou(logits, target) == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert quality.pixel_accuracy(logits, target) == pytest.approx(4 / 5)
    assert quality.miou(logits, torch.where(target == 255, -1, target)) == pytest.approx(0.625)
    assert math.isnan(quality.miou(logits, torch.full_like(target, 255)))
    assert quality.miou(logits, predicted) == 1.0


def test_primary_knows_direction_and_task():
    assert quality.primary("accuracy").higher_is_better
    assert quality.primary("accuracy")(LOGITS, TARGET) == 0.5
    assert not quality.primary("rmse").higher_is_better
    ones = torch.ones(4, 3, dtype=torch.int64)
    assert quality.primary("nll", "multilabel")(LOGITS, ones) == quality.binary_nll(LOGITS, ones)
    every = [(name, task) for task, table in quality.FIGURES.items() for name in table]
    assert all(quality.primary(name, task).name == name for name, task in every)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: quality.primary("acuracy"), "Did you mean 'accuracy'"),
        (lambda: quality.primary("accuracy", "regression"), "unknown metric 'accuracy' of regression"),
        (lambda: quality.figures("clasification", LOGITS, TARGET), "Did you mean 'classification'"),
        (lambda: quality.accuracy(LOGITS, TARGET + 2), "from 2 to 3, but the model answers for 3 classes"),
        (lambda: quality.accuracy(LOGITS[:0], TARGET[:0]), "at least one"),
        (lambda: quality.nll(LOGITS, TARGET[:2]), "4 answers and 2 targets"),
    ],
)
def test_what_cannot_be_measured_is_said(call, sentence):
    with pytest.raises(RecipeError, match=sentence):
        call()
