import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses.direction import class_sums, norm_and_direction

inf, nan = math.inf, math.nan


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


CENTRES = features(4, 5, seed=9)
TARGET = torch.tensor([0, 3, 3])


def towards(target: torch.Tensor = TARGET) -> torch.Tensor:
    return (CENTRES / CENTRES.norm(dim=1, keepdim=True))[target]


@given(st.integers(0, 10**6), st.floats(0.01, 100))
@settings(max_examples=40)
def test_it_is_the_formula_one_sample_at_a_time_and_between_zero_and_two(seed, size):
    s, t = features(3, 5, seed=seed) * size, features(3, 5, seed=seed + 1)
    values = norm_and_direction(s, t, target=TARGET, centres=CENTRES)
    for b, y in enumerate(TARGET.tolist()):
        along = sum(a * c for a, c in zip(s[b].tolist(), CENTRES[y].tolist())) / math.dist(CENTRES[y], [0.0] * 5)
        longer = max(math.dist(x[b], [0.0] * 5) for x in (s, t))
        assert values[b].item() == pytest.approx(1 - along / longer, rel=1e-9, abs=1e-12)
    assert ((values >= 0) & (values <= 2)).all()


def test_beyond_the_teachers_length_only_the_direction_counts():
    s = features(3, 5)
    t = 0.9 * s.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(features(3, 5, seed=1))
    value = norm_and_direction(s, t, target=TARGET, centres=CENTRES)
    torch.testing.assert_close(value, 1 - torch.cosine_similarity(s, towards()))
    torch.testing.assert_close(norm_and_direction(7 * s, t, target=TARGET, centres=CENTRES), value)


def test_below_it_the_gradient_is_the_same_everywhere_and_makes_the_feature_longer():
    s, t = (0.1 * features(3, 5)).requires_grad_(), 100 * features(3, 5, seed=1)
    value = norm_and_direction(s, t, target=TARGET, centres=CENTRES).mean()
    (gradient,) = torch.autograd.grad(value, s)
    torch.testing.assert_close(gradient, -towards() / (3 * t.norm(dim=1, keepdim=True)))


def test_it_is_zero_exactly_along_the_mean_and_from_the_teachers_length_on():
    t = features(3, 5)
    long = t.norm(dim=1, keepdim=True)
    for factor, expected in ((1.0, 0.0), (3.0, 0.0), (0.25, 0.75), (-2.0, 2.0)):
        value = norm_and_direction(factor * long * towards(), t, target=TARGET, centres=CENTRES)
        torch.testing.assert_close(value, torch.full((3,), expected).double(), atol=1e-12, rtol=0)


def test_the_lengths_of_the_means_do_not_matter():
    s, t = features(3, 5), features(3, 5, seed=1)
    longer = CENTRES * torch.tensor([[3.0], [1.0], [0.1], [1e6]])
    value = norm_and_direction(s, t, target=TARGET, centres=CENTRES)
    torch.testing.assert_close(norm_and_direction(s, t, target=TARGET, centres=longer), value)


def test_gradients_in_float64():
    s, t = features(3, 5).requires_grad_(), features(3, 5, seed=1).requires_grad_()
    weight, centres = features(3, seed=2).requires_grad_(), CENTRES.clone().requires_grad_()
    mask = torch.tensor([True, False, True])

    def loss(a, b, c, w):
        return norm_and_direction(a, b, target=TARGET, centres=c, mask=mask, weight=w)

    assert torch.autograd.gradcheck(loss, (s, t, centres, weight))


@pytest.mark.parametrize("bad", [nan, inf])
def test_what_does_not_count_is_exactly_zero_without_a_gradient(bad):
    s = features(3, 5).index_fill(0, torch.tensor([0]), bad).requires_grad_()
    t = features(3, 5, seed=1)
    full = norm_and_direction(s[1:], t[1:], target=TARGET[1:], centres=CENTRES)
    for target, mask in ((torch.tensor([-100, 3, 3]), None), (TARGET, torch.tensor([False, True, True]))):
        values = norm_and_direction(s, t, target=target, centres=CENTRES, mask=mask)
        assert torch.equal(values, torch.cat([torch.zeros(1).double(), full]))
        (gradient,) = torch.autograd.grad(values.sum(), s)
        assert gradient[0].eq(0).all()
        assert gradient[1:].isfinite().all()


def test_features_or_means_of_zero_have_no_direction_and_no_gradient():
    s = torch.zeros(2, 3, requires_grad=True)
    centres = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    value = norm_and_direction(s, torch.zeros(2, 3), target=torch.tensor([1, 1]), centres=centres)
    assert value.tolist() == [1.0, 1.0]
    assert torch.autograd.grad(value.sum(), s)[0].isfinite().all()
    s = torch.ones(1, 3, requires_grad=True)
    value = norm_and_direction(s, torch.ones(1, 3), target=torch.tensor([0]), centres=centres)
    assert value.tolist() == [1.0]
    assert torch.autograd.grad(value.sum(), s)[0].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    s, t = (features(3, 5) * 3e4).to(dtype), features(3, 5, seed=1).to(dtype)
    value = norm_and_direction(s, t, target=TARGET, centres=CENTRES.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, norm_and_direction(s.float(), t.float(), target=TARGET, centres=CENTRES.float()))


def test_sums_per_class_are_those_of_a_loop_and_add_up_over_batches():
    f, target = features(20, 3).float(), torch.randint(-1, 4, (20,), generator=torch.Generator().manual_seed(0))
    sums, number = class_sums(f, target, 5)
    for c in range(5):
        own = [x for x, y in zip(f.double(), target.tolist()) if y == c]
        torch.testing.assert_close(sums[c], sum(own, torch.zeros(3).double()))
        assert number[c] == len(own)
    first, second = class_sums(f[:7], target[:7], 5), class_sums(f[7:], target[7:], 5)
    torch.testing.assert_close(first[0] + second[0], sums)
    torch.testing.assert_close(first[1] + second[1], number)


def test_mistakes_are_answered_in_sentences():
    x = torch.zeros(2, 3)
    with pytest.raises(RecipeError, match=r"\[2, 3\], the teacher's \[2, 4\]"):
        norm_and_direction(x, torch.zeros(2, 4), target=torch.zeros(2, dtype=torch.long), centres=torch.zeros(1, 3))
    with pytest.raises(RecipeError, match=r"class means of shape \[4, 5\]; needed is \[classes, 3\]"):
        norm_and_direction(x, x, target=torch.zeros(2, dtype=torch.long), centres=CENTRES)
    assert losses.find("norm-and-direction") is norm_and_direction
