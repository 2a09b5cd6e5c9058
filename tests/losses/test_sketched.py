import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck import losses
from limbeck.errors import RecipeError
from limbeck.losses import linear, sketched, token_divergences
from limbeck.signals import Projection
from limbeck.sketches import Sketch

FORMS = {
    "kl": (losses.kl, sketched.kl),
    "reverse_kl": (losses.reverse_kl, sketched.reverse_kl),
    "jeffreys": (losses.jeffreys, sketched.jeffreys),
    "js": (partial(losses.js, beta=0.3), partial(sketched.js, beta=0.3)),
    "continuous_js": (
        partial(token_divergences.continuous_js, beta=0.2),
        partial(sketched.continuous_js, beta=0.2),
    ),
    "trl_js": (partial(token_divergences.trl_js, beta=1.0), partial(sketched.trl_js, beta=1.0)),
    "skew_kl": (token_divergences.skew_kl, sketched.skew_kl),
    "skew_reverse_kl": (token_divergences.skew_reverse_kl, sketched.skew_reverse_kl),
    "tvd": (token_divergences.tvd, sketched.tvd),
    "adaptive_kl": (token_divergences.adaptive_kl, sketched.adaptive_kl),
}


def pair(tokens=(2, 3), classes=11, width=5, seed=0, softcap=None, scale=1.0, bias=True):
    """A student's projection with gradients, and a teacher's logits, in float64."""
    draw = torch.Generator().manual_seed(seed)

    def of(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=draw)

    hidden, weight = of(*tokens, width).requires_grad_(), of(classes, width).requires_grad_()
    own = Projection(hidden, weight, of(classes).requires_grad_() if bias else None, scale, softcap)
    return own, 2 * of(*tokens, classes)


def bucketed(logits, sketch):
    """log-probabilities over k + 1 buckets, written out token by token."""
    log_q, rows = logits.log_softmax(-1).flatten(0, -2), []
    for log_row, ids in zip(log_q, sketch.ids.flatten(0, -2)):
        others = [c for c in range(log_row.shape[0]) if c not in ids.tolist()]
        rows.append(torch.cat([log_row[ids], log_row[others].logsumexp(0, keepdim=True)]))
    return torch.stack(rows).view(*logits.shape[:-1], -1)


def gradients(values, projection):
    inputs = [t for t in (projection.hidden, projection.weight, projection.bias) if t is not None]
    found = torch.autograd.grad(values.sum(), inputs, allow_unused=True, retain_graph=True)
    return [g if g is not None else torch.zeros_like(t) for g, t in zip(found, inputs)]


def alike(ours, theirs, projection, **close):
    torch.testing.assert_close(ours, theirs, **close)
    for mine, slow in zip(gradients(ours, projection), gradients(theirs, projection)):
        torch.testing.assert_close(mine, slow, **close)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("how", ["projection", "tensor"])
def test_what_is_compared_are_k_plus_one_buckets(name, how):
    own, logits = pair(softcap=4.0, scale=1.5)
    plain, ours = FORMS[name]
    sketch = Sketch.top(logits, 4)
    slow = plain(bucketed(own.materialise(), sketch), bucketed(logits, sketch))
    alike(ours(own if how == "projection" else own.materialise(), sketch), slow, own)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_with_every_class_known_it_is_the_whole_divergence(name, temperature):
    own, logits = pair()
    plain, ours = FORMS[name]
    sketch = Sketch.top(logits, 11)
    slow = plain(own.materialise(), logits, temperature=temperature)
    alike(ours(own, sketch, temperature=temperature), slow, own)
    alike(ours(own.materialise(), sketch, temperature=temperature), slow, own)


@pytest.mark.parametrize("name", [n for n in FORMS if n != "adaptive_kl"])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_where_both_rests_are_even_nothing_is_lost(name, temperature):
    _, logits = pair()
    sketch = Sketch.top(logits, 3)
    even = torch.zeros_like(logits).scatter(-1, sketch.ids, torch.randn(2, 3, 3, dtype=torch.float64))
    plain, ours = FORMS[name]
    whole = plain(even, sketch.expand(), temperature=temperature)
    torch.testing.assert_close(ours(even, sketch, temperature=temperature), whole)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js", "tvd", "skew_kl"])
def test_never_above_the_whole_divergence(name):
    plain, ours = FORMS[name]
    for seed in range(5):
        own, logits = pair(seed=seed)
        for k in (1, 2, 5):
            assert (ours(own, Sketch.top(logits, k)) <= plain(own.materialise(), logits) + 1e-12).all()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("how", ["projection", "tensor"])
def test_a_spread_rest_is_the_divergence_from_the_expanded_sketch(temperature, how):
    own, logits = pair(softcap=5.0)
    sketch = Sketch.top(logits, 4)
    given_ = own if how == "projection" else own.materialise()
    slow = losses.kl(own.materialise(), sketch.expand(), temperature=temperature)
    alike(sketched.kl(given_, sketch, tail="spread", temperature=temperature), slow, own)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_dropped_rest_is_the_renormalised_top_k(temperature):
    own, logits = pair()
    slow = token_divergences.top_k_kl(own.materialise(), logits, k=3, temperature=temperature)
    for student in (own, own.materialise()):
        alike(sketched.top_k_kl(student, Sketch.top(logits, 5), k=3, temperature=temperature), slow, own)
        alike(sketched.kl(student, Sketch.top(logits, 3), tail="drop", temperature=temperature), slow, own)


def test_a_dropped_rest_is_biased_and_the_bucket_is_not():
    """The classic bug: the renormalised form is not least at the teacher itself; the bucket's is 0 there."""
    _, logits = pair()
    sketch = Sketch.top(logits, 3)
    assert (sketched.kl(logits, sketch, tail="drop") > 0.01).all()
    assert torch.all(sketched.kl(logits, sketch) < 1e-12)
    moved = logits.scatter_add(-1, sketch.ids, torch.full_like(sketch.log_probs, 5.0))  # the rest is given nothing
    assert (sketched.kl(moved, sketch, tail="drop") < sketched.kl(logits, sketch, tail="drop")).all()
    assert (sketched.kl(moved, sketch) > 0.01).all()


def test_cross_entropy_is_kl_plus_the_buckets_entropy():
    own, logits = pair()
    sketch = Sketch.top(logits, 4)
    log_p = bucketed(logits, sketch)
    for student in (own, own.materialise()):
        expected = sketched.kl(student, sketch) - (log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(sketched.cross_entropy(student, sketch), expected)


@pytest.mark.parametrize("how", ["projection", "tensor"])
def test_samples_estimate_the_cross_entropy_and_its_gradient_without_bias(how):
    """Averaged over a fine grid of starts, the estimate is the true value: the grid is the whole of the randomness."""
    own, logits = pair(tokens=(1, 2))
    starts = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    many = logits.expand(4000, 2, 11)
    sketch = Sketch.drawn(many, 6, starts[:, None].expand(4000, 2))
    torch.testing.assert_close(sketch.total(), torch.ones(4000, 2, dtype=torch.float64))
    hidden = own.hidden.expand(4000, 2, 5)
    wide = Projection(hidden, own.weight, own.bias)
    values = sketched.kl(wide if how == "projection" else wide.materialise(), sketch)
    true = -(logits.softmax(-1) * own.materialise().log_softmax(-1)).sum(-1)[0]
    alike(values.mean(0), true, own, atol=3e-3, rtol=3e-3)


def test_samples_serve_no_other_divergence_and_no_other_temperature():
    own, logits = pair()
    sketch = Sketch.drawn(logits, 6, torch.rand(2, 3))
    for name, (_, ours) in FORMS.items():
        if name != "kl":
            with pytest.raises(RecipeError, match="samples"):
                ours(own, sketch)
    for student in (own, own.materialise()):
        with pytest.raises(RecipeError, match="temperature=2"):
            sketched.kl(student, sketch, temperature=2.0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("scale", [True, False])
def test_labels_masks_and_weights_as_in_the_fused_losses(temperature, scale):
    own, logits = pair(softcap=3.0)
    sketch = Sketch.top(logits, 11)
    teacher = Projection(logits, torch.eye(11, dtype=torch.float64))
    target = torch.tensor([[1, -100, 3], [-100, 10, 0]])
    options = {
        "temperature": temperature,
        "scale": scale,
        "mask": torch.tensor([[True, True, False], [True, True, True]]),
        "weight": torch.rand(2, 3, dtype=torch.float64),
        "target": target,
        "label_weight": 0.7,
    }
    for name in ("kl", "reverse_kl", "js"):
        dense = getattr(linear, name)(own, teacher, **options)
        alike(getattr(sketched, name)(own, sketch, **options), dense, own)
        alike(getattr(sketched, name)(own.materialise(), sketch, **options), dense, own)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.sampled_from([1.0, 2.0]))
@settings(max_examples=25, deadline=None)
def test_chunks_change_nothing(tokens, classes, k, seed, temperature):
    own, logits = pair((tokens,), classes, seed=seed)
    sketch = Sketch.top(logits, k)
    for loss in (sketched.kl, partial(sketched.kl, tail="spread"), sketched.reverse_kl):
        whole = loss(own, sketch, temperature=temperature)
        alike(loss(own, sketch, temperature=temperature, budget=1), whole, own)
        alike(loss(own.materialise(), sketch, temperature=temperature), whole, own)


def test_an_upstream_gradient_that_differs_per_token():
    own, logits = pair()
    sketch, by = Sketch.top(logits, 3), torch.rand(2, 3, dtype=torch.float64)
    fast = gradients(sketched.js(own, sketch) * by, own)
    slow = gradients(sketched.js(own.materialise(), sketch) * by, own)
    for mine, other in zip(fast, slow):
        torch.testing.assert_close(mine, other)


def test_gradcheck():
    own, logits = pair((2,), 6, 3)
    sketch = Sketch.top(logits[..., :6], 2)

    def run(hidden, weight, bias, tail="bucket"):
        return sketched.kl(Projection(hidden, weight, bias, softcap=3.0), sketch, tail=tail, temperature=1.5)

    assert torch.autograd.gradcheck(run, (own.hidden, own.weight, own.bias))
    assert torch.autograd.gradcheck(partial(run, tail="spread"), (own.hidden, own.weight, own.bias))


def test_entries_that_stand_for_nothing_change_nothing():
    own, logits = pair()
    sketch = Sketch.top(logits, 3)
    padded = Sketch(
        torch.cat([sketch.ids, torch.zeros_like(sketch.ids)], -1),
        torch.cat([sketch.log_probs, torch.full_like(sketch.log_probs, -math.inf)], -1),
        sketch.log_tail,
        11,
    )
    for _, ours in FORMS.values():
        for student in (own, own.materialise()):
            alike(ours(student, padded), ours(student, sketch), own)


@pytest.mark.parametrize("how", ["projection", "tensor"])
def test_a_token_without_an_answer_counts_nothing(how):
    own, logits = pair()
    sketch = Sketch.top(logits, 3)
    sketch.log_probs[0, 1], sketch.log_tail[0, 1] = -math.inf, -math.inf
    student = own if how == "projection" else own.materialise()
    for _, ours in FORMS.values():
        values = ours(student, sketch)
        assert values[0, 1] == 0
        into = gradients(values[0, 1], own)
        assert all((g == 0).all() for g in into)
        assert all(g.isfinite().all() for g in gradients(values, own))


def test_a_rest_without_mass_costs_much_and_not_infinitely():
    own, logits = pair()
    sketch = Sketch.top(logits, 3)
    empty = Sketch(sketch.ids, sketch.log_probs.log_softmax(-1), torch.full_like(sketch.log_tail, -math.inf), 11)
    for student in (own, own.materialise()):
        values = sketched.reverse_kl(student, empty)
        assert values.isfinite().all()
        assert (values > 20).any()
        assert all(g.isfinite().all() for g in gradients(values, own))
    alike(sketched.reverse_kl(own, empty), sketched.reverse_kl(own.materialise(), empty), own)


def test_nothing_cancels_where_the_known_classes_have_nearly_everything():
    logits = torch.zeros(1, 1000)
    logits[0, 7] = 40.0  # the rest has mass 4e-15, far below what 1 - p can hold in fp32
    sketch = Sketch.top(logits, 1)
    assert abs(float(sketch.log_tail) - (math.log(999) - 40)) < 1e-4
    student = Projection(logits, torch.eye(1000))
    assert float(sketched.kl(student, sketch)) < 1e-12
    assert float(sketched.reverse_kl(student, sketch)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_fp32(dtype):
    own, logits = pair((4,), 50)
    half = Projection(own.hidden.detach().to(dtype).requires_grad_(), own.weight.detach().to(dtype).requires_grad_())
    wide = Projection(half.hidden.detach().float().requires_grad_(), half.weight.detach().float().requires_grad_())
    sketch = Sketch.top(logits[:, :50].to(dtype), 8)
    values = sketched.kl(half, sketch)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, sketched.kl(wide, sketch), atol=0.05, rtol=0.05)
    into, expected = (torch.autograd.grad(sketched.kl(p, sketch).sum(), p.hidden)[0] for p in (half, wide))
    torch.testing.assert_close(into.float(), expected, atol=0.1, rtol=0.1)


def test_a_mask_that_counts_nothing():
    own, logits = pair()
    none = torch.zeros(2, 3, dtype=torch.bool)
    for student in (own, own.materialise()):
        values = sketched.kl(student, Sketch.top(logits, 3), mask=none)
        assert (values == 0).all()
        assert all((g == 0).all() for g in gradients(values, own))


def test_masked_tokens_may_hold_anything():
    own, logits = pair()
    bad = own.materialise().detach().clone()
    bad[0, 0] = math.nan
    bad.requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 0] = False
    values = sketched.kl(bad, Sketch.top(logits, 3), mask=mask)
    (into,) = torch.autograd.grad(values.sum(), bad)
    assert values[0, 0] == 0
    assert (into[0, 0] == 0).all()
    assert into.isfinite().all()


def test_a_padded_head_takes_no_part():
    own, logits = pair(classes=124)
    padded = Projection(own.hidden, torch.cat([own.weight, own.weight[:4]]), torch.cat([own.bias, own.bias[:4]]))
    sketch = Sketch.top(logits, 5)
    alike(sketched.kl(padded, sketch), sketched.kl(own, sketch), own)
    longer = Sketch.top(torch.cat([logits, torch.full((2, 3, 4), -math.inf, dtype=torch.float64)], -1), 5)
    alike(sketched.kl(own, longer), sketched.kl(own, sketch), own)


def test_every_fused_loss_has_a_form_for_sketches():
    for loss in linear._FUSED:
        found = sketched.matching(loss)
        assert found is not None
        assert found.__name__ == loss.__name__
    assert sketched.matching(losses.mse) is None


def test_refused():
    own, logits = pair()
    sketch = Sketch.top(logits, 3)
    for student in (own, own.materialise()):
        with pytest.raises(RecipeError, match="11"):
            sketched.kl(student, Sketch(sketch.ids, sketch.log_probs, sketch.log_tail, 900))
        with pytest.raises(RecipeError, match="temperature 0"):
            sketched.kl(student, sketch, temperature=0)
        with pytest.raises(RecipeError, match="tail='even'"):
            sketched.kl(student, sketch, tail="even")
        with pytest.raises(RecipeError, match="same tokens"):
            sketched.kl(student, sketch[:1])
        with pytest.raises(RecipeError, match="labels have shape"):
            sketched.kl(student, sketch, target=torch.zeros(2, dtype=torch.int64))
        with pytest.raises(RecipeError, match="renormalise_student"):
            sketched.top_k_kl(student, sketch, renormalise_student=True)
        with pytest.raises(RecipeError, match="beta"):
            sketched.js(student, sketch, beta=1.0)
