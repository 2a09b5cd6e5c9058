"""Divergences from hidden states and heads are those of the products, in value and gradient, and hold no product."""

import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses import linear, token_divergences
from limbeck.losses.linear.engine import Problem
from limbeck.signals import Projection

SAME = {
    linear.kl: losses.kl,
    linear.reverse_kl: losses.reverse_kl,
    linear.jeffreys: losses.jeffreys,
    linear.js: losses.js,
    linear.continuous_js: token_divergences.continuous_js,
    linear.trl_js: token_divergences.trl_js,
    linear.skew_kl: token_divergences.skew_kl,
    linear.skew_reverse_kl: token_divergences.skew_reverse_kl,
    linear.tvd: token_divergences.tvd,
    linear.adaptive_kl: token_divergences.adaptive_kl,
    linear.top_k_kl: token_divergences.top_k_kl,
}


def part(function, **options):
    """A loss with an option of its own, in both forms."""
    own = partial(function, **options)
    own.__name__ = function.__name__ + "-".join(map(str, options.values()))
    SAME[own] = partial(SAME[function], **options)
    return own


WITH_OPTIONS = [
    part(linear.js, beta=0.1),
    part(linear.continuous_js, beta=0.0),
    part(linear.continuous_js, beta=0.8),
    part(linear.trl_js, beta=1.0),
    part(linear.skew_kl, alpha=0.4),
    part(linear.skew_reverse_kl, alpha=0.7),
    part(linear.top_k_kl, k=3, renormalise_student=True),
    part(linear.top_k_kl, k=2),
]
FORMS = list(SAME)
NAMED = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
DIFFERENTIABLE = [f for f in FORMS if f is not linear.adaptive_kl]  # whose weights are constants


@pytest.fixture(autouse=True, scope="module")
def chunks_however_few():
    """What is tested here are chunks, although the plain form would be faster on all that a test can afford."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "SMALL", -1)
        yield


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sides(
    tokens: tuple[int, ...] = (2, 5), classes: int = 11, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Projection, Projection]:
    """A student of width 4, whose tensors are leaves, and a teacher of width 6."""
    student = [draw(*s, seed=seed + i, dtype=dtype) for i, s in enumerate([(*tokens, 4), (classes, 4), (classes,)])]
    teacher = [draw(*s, seed=seed + 7 + i, dtype=dtype) for i, s in enumerate([(*tokens, 6), (classes, 6), (classes,)])]
    return Projection(*(x.requires_grad_() for x in student)), Projection(*teacher)


def leaves(side: Projection) -> list[torch.Tensor]:
    return [x for x in (side.hidden, side.weight, side.bias) if x is not None]


def chunks_of(tokens: int, classes: int = 11, itemsize: int = 8) -> int:
    """A budget that lets so many tokens into one chunk."""
    return 2 * classes * itemsize * tokens


def gradients(values: torch.Tensor, side: Projection) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(values, leaves(side), retain_graph=True)


def both(form, student, teacher, **options):
    """Values of the form and of its plain counterpart."""
    plain = {k: v for k, v in options.items() if k not in ("budget", "classes")}
    return form(student, teacher, **options), SAME[form](student.materialise(), teacher.materialise(), **plain)


@NAMED
@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
def test_values_and_gradients_are_those_of_the_products_for_any_chunk(form, chunk):
    student, teacher = sides()
    weight = draw(2, 5, seed=3).abs()
    mask = draw(2, 5, seed=4) > -0.5
    options = {"temperature": 1.7, "mask": mask, "weight": weight, "budget": chunks_of(chunk)}
    ours, plain = both(form, student, teacher, **options)
    torch.testing.assert_close(ours, plain)
    for reduced in (torch.Tensor.sum, torch.Tensor.mean, lambda v: (v * draw(2, 5, seed=5)).sum()):
        torch.testing.assert_close(gradients(reduced(ours), student), gradients(reduced(plain), student))


@given(
    form=st.sampled_from(FORMS),
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    classes=st.integers(1, 6),
    chunk=st.integers(1, 5),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    scale=st.booleans(),
    seed=st.integers(0, 10),
    keep=st.sampled_from([None, 0.0, 0.5, 1.0]),
    data=st.data(),
)
@settings(deadline=None, max_examples=120)
def test_any_shape_and_any_mask(form, tokens, classes, chunk, temperature, scale, seed, keep, data):
    student, teacher = sides(tuple(tokens), classes, seed)
    options = {"temperature": temperature, "scale": scale, "budget": chunks_of(chunk, classes)}
    if keep is not None:
        over = tokens[: data.draw(st.integers(1, len(tokens)))]  # a mask per token, or per sample
        options["mask"] = torch.rand(*over, generator=torch.Generator().manual_seed(seed)) < keep
    ours, plain = both(form, student, teacher, **options)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours.sum(), student), gradients(plain.sum(), student))
    if keep == 0.0:
        assert ours.tolist() == torch.zeros(tokens).tolist()
        assert all(g.count_nonzero() == 0 for g in gradients(ours.sum(), student))


@pytest.mark.parametrize("form", DIFFERENTIABLE, ids=lambda form: form.__name__)
def test_gradcheck(form):
    student, teacher = sides((3,), 5)
    mask = torch.tensor([True, False, True])
    options = {"temperature": 1.3, "mask": mask, "budget": chunks_of(1, 5)}
    for reduced in (lambda v: v, torch.Tensor.mean):

        def function(*own, reduced=reduced):
            return reduced(form(Projection(*own), teacher, **options))

        assert torch.autograd.gradcheck(function, tuple(leaves(student)))


@NAMED
def test_a_head_without_bias_and_a_head_that_does_not_learn(form):
    student, teacher = sides()
    bare = Projection(student.hidden, student.weight.detach())
    ours, plain = both(form, bare, teacher, budget=chunks_of(3))
    upstream = draw(2, 5, seed=9)
    expected = torch.autograd.grad(plain, student.hidden, upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, student.hidden, upstream), expected)


def test_gradients_are_written_in_the_forward_pass_unless_tokens_count_differently(monkeypatch):
    student, teacher = sides()
    passes, solve = [], Problem.solve
    monkeypatch.setattr(Problem, "solve", lambda self, *a: (passes.append(1), solve(self, *a))[1])
    mask = draw(2, 5, seed=4) > 0
    values = linear.kl(student, teacher, mask=mask)
    (3 * values[mask].mean()).backward()
    assert len(passes) == 1
    values = linear.kl(student, teacher)
    (values * draw(2, 5)).sum().backward()
    assert len(passes) == 3
    values = linear.kl(Projection(student.hidden, student.weight.detach()), teacher)
    (values * draw(2, 5)).sum().backward()  # a frozen head has no sum over tokens
    assert len(passes) == 4


def test_a_second_backward_gives_the_same_gradient_and_a_released_graph_says_so():
    student, teacher = sides()
    values = linear.kl(student, teacher).mean()
    first = [g.clone() for g in gradients(values, student)]
    torch.testing.assert_close(list(gradients(values, student)), first, rtol=0, atol=0)
    torch.autograd.grad(values, leaves(student))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(values, leaves(student))


@NAMED
def test_no_tensor_is_larger_than_a_chunk(form):
    class Largest(TorchDispatchMode):
        most = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.most = max([self.most, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
            return out

    for tokens in (64, 512):
        student, teacher = sides((tokens,), 97)
        with Largest() as largest:
            form(student, teacher, budget=chunks_of(2, 97)).mean().backward()
        assert largest.most <= max(6 * 97, tokens * 6)  # the teacher's head, hidden states; 64 x 97 is far


def test_masked_tokens_may_hold_anything():
    student, teacher = sides()
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 1] = mask[1, 4] = False
    weight = torch.ones(2, 5)
    clean = linear.kl(student, teacher, mask=mask)
    with torch.no_grad():
        student.hidden[0, 1], teacher.hidden[1, 4], weight[0, 1] = math.nan, math.inf, math.nan
    values = linear.kl(student, teacher, mask=mask, weight=weight)
    torch.testing.assert_close(values, clean)
    assert values[0, 1] == values[1, 4] == 0
    own = gradients(values.sum(), student)
    assert all(g.isfinite().all() for g in own)
    assert own[0][~mask].count_nonzero() == 0
    frozen = linear.kl(Projection(student.hidden, student.weight.detach()), teacher, mask=mask)
    (into_hidden,) = torch.autograd.grad(frozen, student.hidden, torch.where(mask, 1.0, math.nan).double())
    assert into_hidden[~mask].count_nonzero() == 0


@NAMED
@pytest.mark.parametrize("size", [30.0, 300.0, 1e4])
def test_extreme_logits_stay_finite_and_equal_to_the_plain_form(form, size):
    student, teacher = sides(dtype=torch.float32)
    student, teacher = (Projection(p.hidden * size, p.weight, p.bias) for p in (student, teacher))
    student = Projection(*(x.detach().requires_grad_() for x in leaves(student)))
    ours, plain = both(form, student, teacher)
    torch.testing.assert_close(ours, plain)
    own = gradients(ours.sum(), student)
    assert all(g.isfinite().all() for g in own)
    for a, b in zip(own, gradients(plain.sum(), student)):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7 * size**2  # eps times log-probabilities times hidden


@pytest.mark.parametrize(
    "form", [f for f in FORMS if "top" not in f.__name__ or "True" in f.__name__], ids=lambda form: form.__name__
)
def test_equal_distributions_are_zero_with_zero_gradients(form):
    student, _ = sides(dtype=torch.float32)
    values = form(student, Projection(*(x.detach() for x in leaves(student))), temperature=0.7)
    assert (values >= 0).all()
    torch.testing.assert_close(values, torch.zeros_like(values), atol=1e-6, rtol=0)
    for g in gradients(values.sum(), student):
        torch.testing.assert_close(g, torch.zeros_like(g), atol=1e-5, rtol=0)


@NAMED
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(form, dtype):
    student, teacher = sides((4, 8), 300, dtype=dtype)
    ours, plain = both(form, student, teacher, temperature=2.0, budget=chunks_of(5, 300, 4))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain)  # the logits are rounded by the product, and nothing after it is
    exact = Projection(*(x.detach().double().requires_grad_() for x in leaves(student)))
    full = SAME[form](
        exact.materialise(), Projection(*(x.double() for x in leaves(teacher))).materialise(), temperature=2
    )
    true = gradients(full.mean(), exact)
    for own, other, t in zip(gradients(ours.mean(), student), gradients(plain.mean(), student), true):
        assert own.dtype == dtype
        assert (own.double() - t).norm() <= 2 * (other.double() - t).norm()  # chunks are rounded, as the plain sum is


def test_sums_over_many_classes_do_not_round_as_half_precision_would():
    # log of the sum of 4096 equal terms: a bf16 sum would be off by whole per cents
    flat = Projection(torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(4096, 2, dtype=torch.bfloat16))
    assert linear.cross_entropy(flat, torch.tensor([17])).item() == pytest.approx(math.log(4096), abs=1e-6)


def test_a_gradient_over_thousands_of_tokens_is_not_summed_in_half_precision():
    # a sum of 4096 equal terms stops growing in bf16 at 256 of them
    student, teacher = sides((1,), dtype=torch.bfloat16)
    many = [Projection(s.hidden.detach().expand(4096, -1), s.weight, s.bias) for s in (student, teacher)]
    values = linear.kl(*many, budget=chunks_of(8, itemsize=4))
    one = linear.kl(student, teacher)
    torch.testing.assert_close(values.mean(), one[0])
    own, alone = (torch.autograd.grad(v.sum(), [student.weight, student.bias]) for v in (values, one))
    for a, b in zip(own, alone):
        torch.testing.assert_close(a.float() / 4096, b.float(), rtol=2**-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_disjoint_distributions_reach_the_bounds(share):
    one, other = torch.tensor([[60.0, -60.0]]), torch.tensor([[-60.0, 60.0]])
    student = Projection(one.requires_grad_(), torch.eye(2, requires_grad=True))
    teacher = Projection(other, torch.eye(2))
    coin = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert linear.js(student, teacher, beta=share).item() == pytest.approx(coin, rel=1e-6)
    assert linear.skew_kl(student, teacher, alpha=share).item() == pytest.approx(-math.log(share), rel=1e-6)
    assert linear.skew_reverse_kl(student, teacher, alpha=share).item() == pytest.approx(-math.log(share), rel=1e-6)
    assert linear.tvd(student, teacher).item() == pytest.approx(1)
    assert linear.kl(student, teacher).item() == pytest.approx(120)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_constant_in_all_logits_changes_nothing(offset):
    student, teacher = sides((4,), dtype=torch.float32)
    moved = Projection(student.hidden, student.weight, (student.bias + offset).detach())
    torch.testing.assert_close(
        linear.kl(moved, teacher), linear.kl(student, teacher), rtol=1e-6, atol=1e-6 + offset * 3e-7
    )


@NAMED
@pytest.mark.parametrize("strip", [1, 2, 3])
def test_a_form_sees_as_few_tokens_at_a_time_as_fit_a_cache(form, strip, monkeypatch):
    student, teacher = sides()
    expected = form(student, teacher, target=torch.arange(10).view(2, 5))
    seen, few = [], Problem._few
    monkeypatch.setattr(linear, "STRIP", strip * 11 * 8)
    monkeypatch.setattr(Problem, "_few", lambda self, z, *a: (seen.append(len(z)), few(self, z, *a))[1])
    values = form(student, teacher, target=torch.arange(10).view(2, 5), budget=chunks_of(5))
    assert seen == [strip] * (5 // strip) + [5 % strip] * (5 % strip > 0) + [strip] * (5 // strip) + [5 % strip] * (
        5 % strip > 0
    )
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(gradients(values.sum(), student), gradients(expected.sum(), student))


@NAMED
def test_where_logits_are_few_the_plain_form_gives_the_same(form, monkeypatch):
    student, teacher = sides()
    student = Projection(*leaves(student), scale=0.7, softcap=2.5)
    mask, weight, target = draw(2, 5, seed=4) > -0.5, draw(2, 5, seed=3).abs(), torch.arange(10).view(2, 5) % 9
    with torch.no_grad():
        student.hidden[~mask], teacher.hidden[~mask] = math.nan, math.inf
    options = {"temperature": 1.7, "mask": mask, "weight": weight, "target": target, "label_weight": 0.3, "classes": 9}
    chunked = form(student, teacher, **options)
    expected = gradients(chunked.mean(), student)
    monkeypatch.setattr(linear, "SMALL", 10 * 9)
    monkeypatch.setattr(Problem, "solve", None)  # not called any more
    plain = form(student, teacher, **options)
    torch.testing.assert_close(plain, chunked)
    torch.testing.assert_close(gradients(plain.mean(), student), expected)
    alone = linear.cross_entropy(student, target, mask=mask, classes=9)
    torch.testing.assert_close(alone, losses.cross_entropy(student.materialise()[..., :9], target, mask=mask))
    monkeypatch.setattr(linear, "SMALL", 10 * 9 - 1)
    with pytest.raises(TypeError):
        form(student, teacher, **options)


def test_tiny_gradients_survive_half_precision_until_the_loss_scale_arrives():
    student, teacher = sides((2,), 11, dtype=torch.float16)
    values = linear.kl(student, teacher)
    scaled = gradients(values.sum() * 2.0**14, student)
    tiny = gradients(linear.kl(student, teacher, weight=torch.full((2,), 2.0**-24)).sum() * 2.0**24, student)
    for a, b in zip(scaled, tiny):
        torch.testing.assert_close(a / 2**14, b, rtol=2e-3, atol=1e-5)


@NAMED
def test_autocast_multiplies_in_half_and_sums_in_single(form):
    student, teacher = sides((4, 8), 64, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = both(form, student, teacher)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain)
    for own, true in zip(gradients((ours * 2).mean(), student), gradients((plain * 2).mean(), student)):
        assert own.dtype == torch.float32
        assert (own - true).norm() <= 0.02 * true.norm()
    weighted = draw(4, 8, dtype=torch.float32)  # the pass of backward runs outside of autocast and must multiply alike
    for own, true in zip(gradients((ours * weighted).sum(), student), gradients((plain * weighted).sum(), student)):
        assert (own - true).norm() <= 0.02 * true.norm()


def test_compiling_what_surrounds_it_changes_nothing():
    student, teacher = sides()

    def step(hidden):
        return linear.kl(Projection(torch.tanh(hidden), student.weight, student.bias), teacher).mean() * 2

    compiled = torch.compile(step, backend="aot_eager")
    expected = torch.autograd.grad(step(student.hidden), [student.hidden, student.weight])
    torch.testing.assert_close(
        torch.autograd.grad(compiled(student.hidden), [student.hidden, student.weight]), expected
    )


@NAMED
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_scaled_and_capped_logits(form, temperature):
    student, teacher = sides()
    student = Projection(*leaves(student), scale=0.7, softcap=1.5)
    teacher = Projection(*leaves(teacher), scale=1.3, softcap=3.0)
    torch.testing.assert_close(
        student.materialise(), 1.5 * torch.tanh(0.7 * (student.hidden @ student.weight.T + student.bias) / 1.5)
    )
    target = torch.arange(10).view(2, 5)
    ours, plain = both(form, student, teacher, temperature=temperature, budget=chunks_of(3))
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours.sum(), student), gradients(plain.sum(), student))
    ours = form(student, teacher, temperature=temperature, budget=chunks_of(3), target=target)
    plain = plain + losses.cross_entropy(student.materialise(), target)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours.sum(), student), gradients(plain.sum(), student))


@NAMED
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_labels_in_the_same_pass(form, temperature):
    student, teacher = sides()
    target = torch.arange(10).view(2, 5).clone()
    target[0, 2] = target[1, 0] = -100
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3] = False
    weight = draw(2, 5, seed=3).abs()
    ours, plain = both(form, student, teacher, temperature=temperature, mask=mask, weight=weight)
    both_parts = form(
        student, teacher, temperature=temperature, mask=mask, weight=weight, target=target, label_weight=0.3
    )
    expected = plain + 0.3 * losses.cross_entropy(student.materialise(), target, mask=mask, weight=weight)
    torch.testing.assert_close(both_parts, expected)
    torch.testing.assert_close(gradients(both_parts.mean(), student), gradients(expected.mean(), student))
    assert both_parts[0, 2] == ours[0, 2]


def test_labels_alone():
    student, _ = sides()
    target = torch.arange(10).view(2, 5).clone()
    target[0, 2] = -1
    ours = linear.cross_entropy(student, target, ignore_index=-1, budget=chunks_of(3))
    plain = losses.cross_entropy(student.materialise(), target, ignore_index=-1)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(gradients(ours.sum(), student), gradients(plain.sum(), student))


@pytest.mark.parametrize("swap", [False, True])
def test_rows_that_pad_a_vocabulary_take_no_part(swap):
    big, small = sides((3,), 1024), sides((3,), 1000)
    student, teacher = (small[0], big[1]) if swap else (big[0], small[1])
    ours = linear.kl(student, teacher)
    plain = losses.kl(student.materialise()[..., :1000], teacher.materialise()[..., :1000])
    torch.testing.assert_close(ours, plain)
    own = gradients(ours.sum(), student)
    torch.testing.assert_close(own, gradients(plain.sum(), student))
    assert own[1].shape == student.weight.shape
    assert own[1][1000:].count_nonzero() == own[2][1000:].count_nonzero() == 0
    fewer = linear.kl(student, teacher, classes=990)
    torch.testing.assert_close(fewer, losses.kl(student.materialise()[..., :990], teacher.materialise()[..., :990]))


def test_the_vocabulary_of_one_family_in_two_paddings():
    student, teacher = sides((2,), 151936, dtype=torch.float32)[0], sides((2,), 152064, dtype=torch.float32)[1]
    ours = linear.kl(student, teacher)
    torch.testing.assert_close(ours, losses.kl(student.materialise(), teacher.materialise()[..., :151936]))
    assert gradients(ours.sum(), student)[1].shape == (151936, 4)
    with pytest.raises(RecipeError, match="student's head has 151936 classes, the teacher's 128256"):
        linear.kl(student, Projection(teacher.hidden, teacher.weight[:128256]))


@pytest.mark.parametrize(("sizes", "common"), [((151936, 152064), 151936), ((50304, 50257), 50257), ((7, 7), 7)])
def test_sizes_that_differ_by_padding(sizes, common):
    assert linear.shared_classes(*sizes) == common


@pytest.mark.parametrize("sizes", [(32000, 128256), (128000, 128256), (10, 64), (50257, 50258)])
def test_a_real_mismatch_is_refused_with_both_sizes(sizes):
    with pytest.raises(RecipeError, match=f"student's head has {sizes[0]} classes, the teacher's {sizes[1]}"):
        linear.shared_classes(*sizes)
    assert linear.shared_classes(*sizes, classes=9) == 9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bool])
def test_a_weight_may_have_any_dtype(dtype):
    student, teacher = sides(dtype=torch.float32)
    weight, mask = draw(2, 5, seed=3).gt(0).to(dtype), draw(2, 5, seed=4) > -1
    ours, plain = both(linear.kl, student, teacher, weight=weight, mask=mask, budget=chunks_of(3))
    torch.testing.assert_close(ours, plain)


def test_a_weight_that_is_learnt_gets_its_gradient():
    student, teacher = sides()
    weight = draw(2, 5, seed=3).abs().requires_grad_()
    ours, plain = both(linear.kl, student, teacher, weight=weight)
    for own, true in zip(*(torch.autograd.grad(v.sum(), [weight, *leaves(student)]) for v in (ours, plain))):
        torch.testing.assert_close(own, true)


def test_the_teacher_is_a_constant_and_without_a_graph_nothing_is_written(monkeypatch):
    student, teacher = sides()
    teacher.hidden.requires_grad_()
    assert torch.autograd.grad(linear.kl(student, teacher).sum(), teacher.hidden, allow_unused=True) == (None,)
    with torch.no_grad():
        assert not linear.kl(student, teacher).requires_grad


def test_the_teacher_may_be_more_precise():
    student, teacher = sides(dtype=torch.float32)
    double = Projection(*(x.double() for x in leaves(teacher)))
    torch.testing.assert_close(linear.kl(student, double), linear.kl(student, teacher))


def test_the_fused_form_of_a_plain_loss_is_found():
    for form, plain in SAME.items():
        if form not in WITH_OPTIONS:
            assert linear.fused(plain) is form
            own, other = (inspect.signature(f).parameters for f in (form, plain))
            shared = [o for o in own if o in other]
            assert [own[o].default for o in shared] == [other[o].default for o in shared]
            assert set(other) - set(own) <= {"temperature", "scale", "dim", "mask", "weight"}
    assert linear.fused(losses.mse) is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": 0.0}, "temperature 0.0: needed is a number above 0"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"the mask of a loss has shape \[3\]"),
        ({"weight": torch.ones(2, 4)}, r"the weight of a loss has shape \[2, 4\]"),
        ({"target": torch.zeros(2, dtype=torch.int64)}, r"labels have shape \[2\]"),
        ({"classes": 12}, "classes=12: needed is a number from 1 to .* 11"),
    ],
)
def test_what_is_refused(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        linear.kl(*sides(), **options)


def test_other_tokens_are_refused():
    with pytest.raises(RecipeError, match=r"hidden states of \[2, 5\] tokens, the teacher of \[2, 4\]"):
        linear.kl(sides()[0], sides((2, 4))[1])


def test_an_option_that_nobody_has_is_not_passed_over():
    with pytest.raises(TypeError, match="unexpected option 'temprature'"):
        linear.kl(*sides(), temprature=2.0)
